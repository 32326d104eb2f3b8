from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.pipeline.decisions import SegmentDecision, decisions_of
from shared.messages import Candidate, Entity, Evidence, Parsed, Segment, entity_id

TEXT = "CD28 binds. CD28 binds. No fever."
SEGMENTS = tuple(
    Segment(document_id="d", index=index, start=start, end=end, text=TEXT[start:end], lang="en")
    for index, (start, end) in enumerate([(0, 11), (12, 23), (24, 33)])
)


def entity(start: int, end: int, **fields: object) -> Entity:
    known = {"id": entity_id("dna", start, end), "text": TEXT[start:end], "type": "dna", "confidence": 0.5}
    return Entity.model_validate(known | {"start": start, "end": end, "generator_confidence": 0.25} | fields)


def candidate(segment: Segment, start: int, end: int) -> Candidate:
    return Candidate(segment=segment, type="dna", start=start, end=end, text=TEXT[start:end], generator_confidence=0.25)


PARSED = Parsed(
    candidates=(
        candidate(SEGMENTS[0], 0, 4),
        candidate(SEGMENTS[0], 0, 10),
        candidate(SEGMENTS[1], 12, 16),
        candidate(SEGMENTS[1], 12, 22),
    ),
    repaired={0: 2, 1: 2},
)


def test_entities_go_to_their_segments() -> None:
    evidence = (Evidence(text=None, type="dna", accepted=True, similarity=0.1),)
    found = decisions_of(SEGMENTS, PARSED, [entity(0, 4, evidence=evidence), entity(12, 16, evidence=evidence)])
    assert found == {
        "CD28 binds.": SegmentDecision(entities=(entity(0, 4, evidence=evidence),), candidates=2, repairs=2),
        "No fever.": SegmentDecision(entities=(), candidates=0, repairs=0),
    }
    assert found["CD28 binds."].entities_at(12) == [entity(12, 16, evidence=evidence)]


@pytest.mark.parametrize("wrong", [entity(8, 14), entity(10, 13), entity(23, 24), entity(0, 4, text="CD3")])
def test_entities_that_fit_no_segment_are_not_kept(wrong: Entity) -> None:
    assert decisions_of(SEGMENTS, PARSED, [entity(0, 4), wrong]) == {}
    assert decisions_of(SEGMENTS[1:], PARSED, [entity(0, 4)]) == {}


@given(
    st.floats(0, 1),
    st.lists(st.builds(Evidence, text=st.none() | st.text(), type=st.text(), accepted=st.booleans(),
                       similarity=st.floats(-1, 1)), max_size=3),
)  # fmt: skip
def test_what_is_written_is_read_to_the_last_digit(confidence: float, evidence: list[Evidence]) -> None:
    kept = entity(0, 4, confidence=confidence, evidence=tuple(evidence))
    decision = SegmentDecision(entities=(kept,), candidates=3, repairs=1)
    assert SegmentDecision.read(decision.write(), "CD28 binds.") == decision


@pytest.mark.parametrize("text", ["", "CD3 binds.", "CD2"])
def test_a_decision_on_another_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="entities"):
        SegmentDecision.read(SegmentDecision(entities=(entity(0, 4),), candidates=1, repairs=0).write(), text)
