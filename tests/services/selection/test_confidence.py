from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.selection.confidence import NESTING_BAR, ConfidenceSelector
from services.selection.selector import Selector
from shared.calibration import Calibration, Scaling, TypeCalibration
from shared.messages import Candidate, Segment, check_offsets

TEXT = "abcdefghijklmnopqrst"
SEGMENT = Segment(document_id="d", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")
# Confidences are the probabilities, greedy or not, so that the numbers below can be read.
PLAIN = Calibration(
    types={t: TypeCalibration(beyond=Scaling(), threshold=0.3) for t in ("protein", "dna")},
    unfitted=TypeCalibration(beyond=Scaling()),
)


def candidate(start, end, confidence, *, greedy=True, type_="protein"):
    return Candidate(
        segment=SEGMENT,
        type=type_,
        start=start,
        end=end,
        text=TEXT[start:end],
        generator_confidence=confidence,
        greedy=greedy,
    )


def select(*candidates, calibration=PLAIN):
    selector: Selector = ConfidenceSelector(calibration)
    return [(e.start, e.end) for e in selector.select(candidates)]


def test_the_entity_carries_both_confidences():
    calibration = Calibration(types={"protein": TypeCalibration(greedy=Scaling(slope=0.5))})
    (entity,) = ConfidenceSelector(calibration).select([candidate(2, 5, 0.9)])
    assert entity.model_dump() == {
        "v": 1,
        "id": "protein:2-5",
        "start": 2,
        "end": 5,
        "text": "cde",
        "type": "protein",
        "confidence": pytest.approx(0.75),
        "generator_confidence": 0.9,
        "evidence": (),
        "parent_id": None,
    }


def test_the_threshold_is_the_types_own():
    assert select(candidate(0, 2, 0.31), candidate(4, 6, 0.29)) == [(0, 2)]
    assert select(candidate(0, 2, 0.31, type_="disease"), candidate(4, 6, 0.51, type_="disease")) == [(4, 6)]


def test_spans_beyond_greedy_use_their_own_scaling():
    both = [candidate(0, 2, 0.7), candidate(4, 6, 0.7, greedy=False)]
    assert select(*both, calibration=Calibration.default()) == [(0, 2)]


@pytest.mark.parametrize("greedy", [True, False])
def test_of_crossing_spans_the_more_probable_stays(greedy):
    assert select(candidate(0, 5, 0.6), candidate(3, 8, 0.9, greedy=greedy)) == [(3, 8)]


def test_a_dropped_span_blocks_nothing():
    # The middle one loses to the first, so the last, which only crosses the middle one, stays.
    assert select(candidate(0, 5, 0.9), candidate(4, 9, 0.8), candidate(8, 12, 0.7)) == [(0, 5), (8, 12)]


def test_nested_spans_of_one_type_stay():
    assert select(candidate(0, 9, 0.6), candidate(0, 4, 0.5), candidate(5, 7, 0.4, greedy=False)) == [
        (0, 9),
        (0, 4),
        (5, 7),
    ]


def test_of_boundary_variants_the_more_probable_stays():
    assert select(candidate(0, 5, 0.7), candidate(0, 6, 0.6, greedy=False)) == [(0, 5)]
    assert select(candidate(0, 5, 0.6), candidate(0, 6, 0.7, greedy=False)) == [(0, 6)]
    assert select(candidate(1, 5, 0.6, greedy=False), candidate(0, 5, 0.7, greedy=False)) == [(0, 5)]


def test_boundary_variants_both_stay_where_nesting_is_likely():
    assert select(candidate(0, 5, 0.9), candidate(0, 9, NESTING_BAR, greedy=False)) == [(0, 9), (0, 5)]


def test_types_do_not_touch_one_another():
    assert select(candidate(0, 5, 0.6), candidate(3, 8, 0.9, type_="dna")) == [(0, 5), (3, 8)]


def test_one_span_comes_out_once():
    (entity,) = ConfidenceSelector(PLAIN).select(
        [candidate(0, 5, 0.6), candidate(0, 5, 0.8, greedy=False), candidate(0, 5, 0.7)]
    )
    assert entity.confidence == pytest.approx(0.8)


def test_nothing_in_nothing_out():
    assert select() == []


@st.composite
def some_candidates(draw):
    spans = st.tuples(st.integers(0, len(TEXT)), st.integers(0, len(TEXT))).filter(lambda s: s[0] < s[1])
    confidence = st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.7, 0.85, 1.0])
    one = st.builds(
        lambda span, p, greedy, type_: candidate(*span, p, greedy=greedy, type_=type_),
        spans,
        confidence,
        st.booleans(),
        st.sampled_from(["protein", "dna", "disease"]),
    )
    return draw(st.lists(one, max_size=25))


@given(some_candidates(), st.randoms(use_true_random=False))
def test_what_is_kept_is_consistent(candidates, rng):
    selector = ConfidenceSelector(PLAIN)
    entities = selector.select(candidates)
    assert selector.select(rng.sample(candidates, len(candidates))) == entities
    assert len({e.id for e in entities}) == len(entities)
    assert [(e.start, -e.end, e.type) for e in entities] == sorted((e.start, -e.end, e.type) for e in entities)
    for entity in entities:
        assert check_offsets(TEXT, entity)
        assert entity.confidence >= PLAIN.threshold(entity.type)
    for a, b in combinations(entities, 2):
        if a.type == b.type:
            assert not a.start < b.start < a.end < b.end
            assert not b.start < a.start < b.end < a.end
    for c in candidates:
        # The best of all is never lost.
        if PLAIN.probability(c.type, c.generator_confidence, c.greedy) == pytest.approx(1.0, abs=1e-5):
            assert any(e.type == c.type and e.start < c.end and c.start < e.end for e in entities)
