from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.messages import encodable
from shared.selection.feedback import NewFeedback
from shared.text.segmentation import segment

TEXT = "The patient was kept in a cold room."


def new_feedback(**fields: object) -> NewFeedback:
    return NewFeedback.model_validate(
        {"text": TEXT, "start": 26, "end": 30, "type": "disease", "accepted": False} | fields
    )


def test_identifier_and_time_are_filled_in() -> None:
    made = new_feedback().feedback(now=7.5)
    assert (made.time, made.mention) == (7.5, "cold")
    assert made.id == new_feedback(accepted=True, reviewer="b", time=9.0).feedback(now=8.0).id
    assert made.id != new_feedback(type="symptom").feedback(now=7.5).id
    assert new_feedback(id="mine", time=3.0).feedback(now=7.5).id == "mine"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"start": 30, "end": 30}, "end"),
        ({"end": 99}, "end"),
        ({"start": 25}, "start"),
        ({"end": 31}, "start"),
        ({"type": "weather"}, "type"),
        ({"text": TEXT + "\ud800"}, "text"),
        ({"reviewer": "\ud800"}, "reviewer"),
        ({"time": -1.0}, "time"),
        ({"time": float("nan")}, "time"),
    ],
)
def test_invalid_feedback_is_refused_without_quoting_its_text(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        new_feedback(**fields)
    first = refused.value.errors()[0]
    assert named in (*first["loc"], first["msg"].removeprefix("Value error, ").partition(":")[0])
    assert "patient" not in str(refused.value)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), st.data())
def test_its_candidate_is_what_a_document_would_give(text: str, data: st.DataObject) -> None:
    places = [n for n, character in enumerate(text) if not character.isspace()]
    if not places:
        return
    start = data.draw(st.sampled_from(places))
    end = data.draw(st.sampled_from([n for n in places if n >= start])) + 1
    candidate = new_feedback(text=encodable(text), start=start, end=end, lang="en").feedback(now=0.0).candidate()
    assert candidate.text == text[start:end]
    assert candidate.segment.start <= start < end <= candidate.segment.end
    assert text[candidate.segment.start : candidate.segment.end] == candidate.segment.text
    inside = [(s, e) for s, e in segment(text, "en") if s <= start and end <= e]
    assert not inside or inside == [(candidate.segment.start, candidate.segment.end)]
