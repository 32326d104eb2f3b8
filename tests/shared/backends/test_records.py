from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.backends.records import (
    Record,
    dead_letter_headers,
    milliseconds,
    origin,
    own_headers,
    position_of,
    replay_headers,
)
from shared.messages import SourcePosition


def test_reasons_are_a_closed_list() -> None:
    with pytest.raises(ValueError, match="not_json"):
        dead_letter_headers(Record("t", 0, 0, None, None, 0), "whatever the document says")


@given(field=st.text(), name=st.text(), value=st.binary())
def test_dead_letters_keep_headers_and_take_no_text(field: str, name: str, value: bytes) -> None:
    record = Record("t", 1, 2, None, None, 3, ((name, value), ("biobracket.reason", b"old")))
    headers = dead_letter_headers(record, "invalid", field)
    told = [v for n, v in headers if n == "biobracket.field"]
    assert told in ([], [field.encode("utf-8", "replace")])
    assert [v for n, v in headers if n == "biobracket.reason"] == [b"invalid"]
    if not name.startswith("biobracket."):
        assert (name, value) in headers
    if any(character.isspace() for character in field):
        assert told == []


@given(topic=st.text(max_size=20), numbers=st.tuples(*[st.integers(0, 2**63 - 1)] * 3))
def test_a_dead_letter_names_its_origin_also_after_a_replay(topic: str, numbers: tuple[int, int, int]) -> None:
    partition, offset, timestamp = numbers
    record = Record(topic, partition, offset, b"k", b"v", timestamp, (("trace", b"1"),), "ab" * 16)
    letter = Record("dead-letters", 0, 0, b"k", b"v", 0, dead_letter_headers(record, "invalid"))
    original = position_of(record)
    assert origin(letter) == original
    assert original == SourcePosition(
        topic=topic, topic_id="ab" * 16, partition=partition, offset=offset, timestamp_ms=timestamp
    )
    again = Record(topic, 0, 9, b"k", b"v", 8, replay_headers(letter, original))
    assert position_of(again) == original
    assert own_headers(again) == (("trace", b"1"),)
    assert origin(Record("dead-letters", 0, 1, b"k", b"v", 0, dead_letter_headers(again, "exhausted"))) == original


@pytest.mark.parametrize("lost", ["biobracket.topic", "biobracket.offset"])
def test_what_is_no_dead_letter_of_ours_says_nothing(lost: str) -> None:
    headers = dead_letter_headers(Record("t", 1, 2, None, None, 3), "invalid")
    assert origin(Record("dead-letters", 0, 0, None, None, 0, tuple(h for h in headers if h[0] != lost))) is None
    garbled = tuple((name, b"\xff" if name == lost else value) for name, value in headers)
    assert origin(Record("dead-letters", 0, 0, None, None, 0, garbled)) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, 0),
        (-1, 0),
        (0, 0),
        (1_790_000_000_000, 1_790_000_000_000),
        (1_790_000_000_000_000, 1_790_000_000_000),
        (1_790_000_000_000_000_000, 1_790_000_000_000),
    ],
)
def test_times_in_smaller_units_are_told_by_their_size(given: int | None, expected: int) -> None:
    assert milliseconds(given) == expected
