"""What is let in, and what is told of the rest."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.admission import admit
from shared.backends.records import Record, dead_letter_headers
from shared.errors import DocumentError
from shared.messages import MAX_ID_CHARS, Document

SECRET = "Müller"


def encoded(**fields: object) -> bytes:
    return json.dumps({"id": "d", "text": "t", **fields}).encode()


@pytest.mark.parametrize(
    ("value", "reason", "field", "problem"),
    [
        (None, "empty", "document", "no bytes"),
        (b"", "empty", "document", "no bytes"),
        (f"{SECRET} has a fever".encode(), "not_json", "document", "not JSON"),
        (b'{"id": "d", "text": "Mueller"', "not_json", "document", "not JSON"),
        (b'{"id": "d", "text": "t", "metadata": {"a": NaN}}', "not_json", "document", "not JSON"),
        (b'{"id": "d", "text": "t", "metadata": {"a": 1' + b"0" * 5000 + b"}}", "not_json", "document", "not JSON"),
        pytest.param(b"[" * 100_000, "not_json", "document", "not JSON", id="deep"),
        ('{"id": "d", "text": "Müller"}'.encode("latin-1"), "not_json", "document", "not UTF-8"),
        ('{"id": "d", "text": "患者"}'.encode("gb18030"), "not_json", "document", "not UTF-8"),
        (b'{"id": "d", "text": "\xed\xa0\x80"}', "not_json", "document", "not UTF-8"),
        (json.dumps([SECRET]).encode(), "invalid", "document", "not an object"),
        (json.dumps(SECRET).encode(), "invalid", "document", "not an object"),
        (b"null", "invalid", "document", "not an object"),
        (b'{"text": "t"}', "invalid", "id", "missing"),
        (encoded(id=None), "invalid", "id", "not a string"),
        (encoded(id=7), "invalid", "id", "not a string"),
        (encoded(id=""), "invalid", "id", "empty"),
        (encoded(id="x" * (MAX_ID_CHARS + 1)), "invalid", "id", "too long"),
        pytest.param(encoded(id=SECRET * 2_000_000), "invalid", "id", "too long", id="id of 22 MB"),
        (encoded(id=SECRET + "\ud800"), "invalid", "id", "lone surrogate"),
        (b'{"id": "d"}', "invalid", "text", "missing"),
        (encoded(text=None), "invalid", "text", "not a string"),
        (encoded(text=[SECRET]), "invalid", "text", "not a string"),
        (encoded(text=SECRET + "\udfff"), "invalid", "text", "lone surrogate at character 6"),
        (encoded(lang="fr"), "invalid", "lang", "not one of"),
        (encoded(lang=SECRET), "invalid", "lang", "not one of"),
        (encoded(lang=["en"]), "invalid", "lang", "not one of"),
        (encoded(types=["dna", SECRET]), "unknown_type", "types", "no known entity type at position 1"),
        (encoded(types=["\ud800"]), "unknown_type", "types", "no known entity type at position 0"),
        (encoded(types=[]), "invalid", "types", "empty"),
        (encoded(types=SECRET), "invalid", "types", "not a list"),
        (encoded(types=[7]), "invalid", "types", "wrong type"),
        (encoded(types=["dna"] * 65), "invalid", "types", "too many"),
        (encoded(metadata=[SECRET]), "invalid", "metadata", "not an object"),
        (encoded(metadata={SECRET: "\ud800"}), "invalid", "metadata", "lone surrogate"),
        (encoded(v=2), "invalid", "v", "not one of"),
        (encoded(**{"\ud800": 1}), "invalid", "document", ""),
    ],
)
def test_bad_records_are_named_and_not_quoted(value: bytes | None, reason: str, field: str, problem: str) -> None:
    with pytest.raises(DocumentError) as refused:
        admit(value)
    error = refused.value
    assert (error.reason, error.field) == (reason, field)
    assert problem in error.problem
    assert error.remedy
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert SECRET not in str(error)
    assert len(str(error)) < 2000
    dead_letter_headers(Record("t", 0, 0, None, value, 0), error.reason, error.field)


@pytest.mark.parametrize("text", ["", " ", "\x00", "a\r\nb", "[x]\\", "患者😀", "x" * 10_000_000], ids=lambda t: t[:4])
def test_any_text_is_let_in_unchanged(text: str) -> None:
    assert admit(json.dumps({"id": "d", "text": text}, ensure_ascii=False).encode()).text == text


def test_a_byte_order_mark_is_passed_over() -> None:
    assert admit(b"\xef\xbb\xbf" + encoded()) == Document(id="d", text="t")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)


@given(st.binary())
def test_no_bytes_raise_anything_else(value: bytes) -> None:
    with pytest.raises(DocumentError):
        admit(value)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": JSON,
            "text": JSON,
            "lang": st.sampled_from(["en", "zh"]) | JSON,
            "types": st.lists(st.sampled_from(["dna", "body"])) | JSON,
            "metadata": st.dictionaries(st.text(), JSON) | JSON,
            "v": st.just(1) | JSON,
            "other": JSON,
        },
    ),
    st.booleans(),
)
def test_objects_are_let_in_or_named(fields: dict[str, object], ascii_only: bool) -> None:
    value = json.dumps(fields, ensure_ascii=ascii_only).encode()
    try:
        document = admit(value)
    except DocumentError as error:
        told = str(error)
        assert all(text not in told for text in strings(fields) if len(text) > 3 and not text.isascii())
        return
    assert {name: json.loads(document.model_dump_json())[name] for name in fields if name != "types"} == {
        name: fields[name] for name in fields if name != "types"
    }


def strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for each in value.values() for text in strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return []


@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=2), st.sampled_from(range(7)))
def test_clinical_text_is_never_told(text: str, place: int) -> None:
    value: object = (
        {"id": "d", "text": "t", "lang": text},
        {"id": "d", "text": "t", "types": [text]},
        {"id": text * 300, "text": "t"},
        {"id": "d", "text": {text: text}},
        {"id": "d", text: 1},
        {"id": "d", "text": text + "\ud800"},
        text,
    )[place]
    with pytest.raises(DocumentError) as refused:
        admit(json.dumps(value).encode())
    assert text not in str(refused.value)
    assert text not in repr(refused.value)
