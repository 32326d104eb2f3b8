from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.backends.records import Record, dead_letter_headers


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
