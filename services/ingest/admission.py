"""A record's bytes to a document or to feedback, or to what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError

from shared import entity_types
from shared.backends.records import Problem, Record, position_of
from shared.errors import DocumentError
from shared.messages import MAX_ID_CHARS, MAX_TYPES, Document, Erasure, Message
from shared.selection.feedback import MAX_TEXT, Feedback, NewFeedback

M = TypeVar("M", bound=Message)

_PROBLEMS = {
    "missing": "is missing",
    "string_type": "is not a string",
    "string_too_short": "is empty",
    "string_too_long": "is too long",
    "string_unicode": "holds a lone surrogate, which is not Unicode text",
    "tuple_type": "is not a list",
    "too_long": "holds too many entries",
    "dict_type": "is not an object",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "int_parsing": "is not a whole number",
    "greater_than_equal": "is too small",
}


@dataclass(frozen=True, slots=True)
class _Kind:
    """What records of a topic hold."""

    name: str
    example: str
    remedies: dict[str, str]


_DOCUMENT = _Kind(
    "document",
    'send one JSON object in UTF-8, such as {"id": "note-1", "text": "..."}',
    {
        "v": "send 1, or leave it out",
        "id": f"send a string of 1 to {MAX_ID_CHARS} Unicode characters",
        "text": "send a string of Unicode characters; decode the source with its right encoding first",
        "lang": "send zh or en, or leave it out to have the language detected",
        "types": f"send a list of 1 to {MAX_TYPES} entity type keys, or leave it out for the default set of the "
        "language",
        "metadata": "send an object of JSON values in Unicode, or leave it out",
    },
)
_FEEDBACK = _Kind(
    "feedback",
    'send one JSON object in UTF-8, such as {"text": "...", "start": 0, "end": 4, "type": "disease", '
    '"accepted": false}',
    {
        "v": "send 1, or leave it out",
        "id": f"send a string of 1 to {MAX_ID_CHARS} Unicode characters, or leave it out to have one made",
        "text": f"send 1 to {MAX_TEXT} Unicode characters: the sentence that the mention stands in",
        "start": "send the offset of the mention in the text, in Unicode code points from 0",
        "end": "send the offset behind the mention in the text, in Unicode code points",
        "type": "send the key of an entity type",
        "accepted": "send true or false",
        "document_id": f"send the id of the document, at most {MAX_ID_CHARS} Unicode characters, or leave it out",
        "lang": "send zh or en, or leave it out to have the language detected",
        "reviewer": f"send a string of at most {MAX_ID_CHARS} Unicode characters, or leave it out",
        "time": "send Unix seconds, or leave it out",
    },
)


def admit(value: bytes | None) -> Document:
    """The document that a record's value holds, as UTF-8 JSON; fields that are not known are in its ``model_extra``.

    :class:`DocumentError`, which tells nothing of the value but names of fields, where it holds none.
    """
    document = _read(value, Document, _DOCUMENT)
    try:
        # JSON values are not looked into by pydantic, and Python's parser lets lone surrogates through.
        json.dumps(document.metadata, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise DocumentError("metadata", "holds a lone surrogate", _DOCUMENT.remedies["metadata"]) from None
    if document.types is not None:
        entity_types.check(document.types)
    return document


class _OpenFeedback(NewFeedback):
    model_config = ConfigDict(extra="allow")


def admit_erasure(record: Record) -> Erasure:
    """The erasure that a record without a value asks for: its key names the document. :class:`DocumentError`."""
    try:
        return Erasure(document_id=(record.key or b"").decode(), source=position_of(record))
    except (UnicodeDecodeError, ValidationError):
        raise DocumentError(
            "key",
            "names no document to erase",
            f"send the document's id as the key: 1 to {MAX_ID_CHARS} Unicode characters in UTF-8",
        ) from None


def admit_feedback(value: bytes | None, now: float) -> tuple[Feedback, int]:
    """The same of a reviewer's feedback, and how many fields of it are not known.

    ``now``: Unix seconds, for feedback that gives no time.
    """
    given = _read(value, _OpenFeedback, _FEEDBACK)
    unknown = len(given.model_extra or {})
    return NewFeedback.model_validate(given.model_dump(include=set(NewFeedback.model_fields))).feedback(now), unknown


def unreadable(problem: Problem) -> DocumentError:
    """What is wrong with a batch of records that the Kafka client cannot read."""
    said = {
        "corrupt": "its checksum or structure is wrong; compare the broker's replicas, and send its documents again",
        "codec": "its codec is not known; send its documents again with gzip, snappy, lz4 or zstd, or uncompressed",
    }
    what, _, remedy = said[problem].partition("; ")
    return DocumentError("record", f"cannot be read: {what}", remedy, reason="unreadable")


def _read(value: bytes | None, message: type[M], kind: _Kind) -> M:
    if not value:
        raise DocumentError(kind.name, "has no bytes", kind.example, reason="empty")
    try:
        fields = json.loads(value.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise DocumentError(kind.name, "is not UTF-8", kind.example, reason="not_json") from None
    except (ValueError, RecursionError):
        raise DocumentError(kind.name, "is not JSON", kind.example, reason="not_json") from None
    if not isinstance(fields, dict):
        raise DocumentError(kind.name, "is JSON, but not an object", kind.example)
    try:
        return message.model_validate(fields)
    except ValidationError as error:
        raise _error(error, kind) from None


def _refuse(constant: str) -> Any:
    raise ValueError("NaN and Infinity are not JSON")


def _error(error: ValidationError, record: _Kind) -> DocumentError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind, field = first["type"], str(first["loc"][0]) if first["loc"] else record.name
    reason = "invalid"
    if first["loc"] and field not in record.remedies:  # what a member that is no field is called may be clinical text
        field, problem = record.name, "is not valid"
    elif kind == "value_error":  # of the message's own validators, which know not to quote
        said = first["msg"].removeprefix("Value error, ").partition(";")[0]
        if not first["loc"]:  # of several fields: it begins with the one to change
            field, _, said = said.partition(": ")
        problem = said
        if field == "type":
            reason = "unknown_type"
    elif kind == "literal_error":
        problem = "is not one of the values it can have"
    elif len(first["loc"]) > 1:
        problem = "holds an entry of the wrong type"
    else:
        problem = _PROBLEMS.get(kind, "is not valid")
    return DocumentError(field, problem, record.remedies.get(field, record.example), reason=reason)
