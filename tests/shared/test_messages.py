from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.messages import (
    MAX_ID_CHARS,
    MAX_TYPES,
    Document,
    Entity,
    Extraction,
    Segment,
    SourcePosition,
    TaggedLine,
    check_offsets,
    encodable,
    entity_id,
)


def entity(start: int, end: int, text: str) -> Entity:
    return Entity(
        id=entity_id("disease", start, end),
        start=start,
        end=end,
        text=text,
        type="disease",
        confidence=0.5,
        generator_confidence=0.5,
    )


def extraction(**changes: object) -> Extraction:
    fields: dict[str, object] = {
        "document_id": "note-7",
        "text_sha256": "00",
        "lang": "en",
        "types": ("disease", "drug"),
        "entities": (entity(0, 4, "gout"),),
        "model_revision": "r1",
    }
    return Extraction.model_validate(fields | changes)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=100))
def test_a_document_survives_the_wire(text: str) -> None:
    document = Document(id="note-1", text=text, types=("disease",), metadata={"ward": ["3", None]})
    again = Document.model_validate_json(document.model_dump_json())
    assert again == document
    assert again.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_an_extraction_survives_the_wire() -> None:
    assert Extraction.model_validate_json(extraction().model_dump_json()) == extraction()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "x" * (MAX_ID_CHARS + 1)),
        ("id", "\ud800"),
        ("text", "gout\udfff"),
        ("text", None),
        ("text", 7),
        ("lang", "de"),
        ("types", tuple(map(str, range(MAX_TYPES + 1)))),
        ("v", 2),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Document.model_validate({"id": "note-1", "text": "gout", field: value})
    assert [error["loc"][0] for error in caught.value.errors(include_input=False)] == [field]


def test_a_lone_surrogate_is_located_without_quoting_the_text() -> None:
    with pytest.raises(ValidationError) as caught:
        Document(id="note-1", text="gout\ud800")
    (error,) = caught.value.errors(include_input=False)
    assert "character 4" in error["msg"]
    assert "gout" not in error["msg"]


def test_a_type_asked_twice_is_looked_for_once() -> None:
    assert Document(id="1", text="", types=("drug", "disease", "drug")).types == ("drug", "disease")


def test_messages_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Document(id="1", text="").text = "other"  # type: ignore[misc]


def test_a_segment_is_as_long_as_its_text() -> None:
    with pytest.raises(ValidationError, match="differs from the length"):
        Segment(document_id="1", index=0, start=3, end=5, text="gout", lang="en")


@pytest.mark.parametrize("presence", [-0.1, 1.1])
def test_a_probability_is_between_zero_and_one(presence: float) -> None:
    segment = Segment(document_id="1", index=0, start=3, end=7, text="gout", lang="en")
    with pytest.raises(ValidationError):
        TaggedLine(segment=segment, types=("disease",), tagged="", presence=presence)


@pytest.mark.parametrize(
    ("start", "end", "text", "right"),
    [(4, 8, "痛风", False), (3, 5, "痛风", True), (3, 3, "", False), (3, 99, "痛风石", False), (2, 4, "痛风", False)],
)
def test_offsets_are_checked(start: int, end: int, text: str, right: bool) -> None:
    assert check_offsets("😀患有痛风", entity(start, end, text)) is right


def test_the_key_of_a_result() -> None:
    key = extraction().key
    assert key.startswith("note-7\x1f")
    assert extraction(types=("drug", "disease"), timings={"total": 1.0}).key == key
    others = [{"document_id": "note-8"}, {"text_sha256": "01"}, {"model_revision": "r2"}, {"types": ("drug",)}]
    assert len({key, *(extraction(**other).key for other in others)}) == 5


def test_its_text_is_a_unicode_text() -> None:
    with pytest.raises(ValueError, match="lone surrogate at character 2"):
        encodable("ab\ud800")


def test_metadata_of_null_is_none() -> None:
    assert Document.model_validate({"id": "a", "text": "x", "metadata": None}).metadata == {}
    with pytest.raises(ValidationError, match="metadata"):
        Document.model_validate({"id": "a", "text": "x", "metadata": []})


def at(offset: int, partition: int = 0, time: int = 0, topic_id: str = "") -> SourcePosition:
    return SourcePosition(topic="t", topic_id=topic_id, partition=partition, offset=offset, timestamp_ms=time)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (at(1, time=9), at(2, time=3)),  # within a partition the clock says nothing
        (at(7, 0, time=3), at(2, 1, time=4)),
        (at(1, 0, time=3), at(2, 1, time=3)),
        (at(9, topic_id="a", time=1), at(0, topic_id="b", time=2)),  # the topic was made anew
        (at(1, topic_id="a", time=9), at(2, time=3)),
    ],
)
def test_the_later_position(earlier: SourcePosition, later: SourcePosition) -> None:
    assert later.later_than(earlier)
    assert not earlier.later_than(later)
    assert not later.later_than(later)


def test_fields_of_a_later_version_are_kept() -> None:
    """This version reads and writes on what the next minor one writes, at every level."""
    later = extraction().model_dump(mode="json")
    later["reviewed"] = {"by": "a"}
    later["entities"] = [{**later["entities"][0], "code": "C34"}] if later["entities"] else []
    later["source"] = {"topic": "t", "partition": 0, "offset": 1, "timestamp_ms": 2, "cluster": "c"}
    later["counts"]["tokens"] = 7
    read = Extraction.model_validate_json(json.dumps(later))
    assert json.loads(read.model_dump_json()) == later | {
        "source": {"v": 1, "topic_id": "", **later["source"]},
    }
    assert Document.model_validate({"id": "d", "text": "t", "ward": 7}).model_extra == {"ward": 7}
    with pytest.raises(ValidationError):  # between services of one release nothing is unknown
        Segment.model_validate(
            {"document_id": "d", "index": 0, "start": 0, "end": 1, "text": "t", "lang": "en", "ward": 7}
        )
