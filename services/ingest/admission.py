"""A record's bytes to a document, or to what is wrong with them."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from shared import entity_types
from shared.errors import DocumentError
from shared.messages import MAX_ID_CHARS, MAX_TYPES, Document

# What looks like the name of a field may be named; anything else that stands in its place may be clinical text.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")

_PROBLEMS = {
    "missing": "is missing",
    "extra_forbidden": "is not a field of a document",
    "string_type": "is not a string",
    "string_too_short": "is empty",
    "string_too_long": "is too long",
    "string_unicode": "holds a lone surrogate, which is not Unicode text",
    "tuple_type": "is not a list",
    "too_long": "holds too many entries",
    "dict_type": "is not an object",
}
_REMEDIES = {
    "v": "send 1, or leave it out",
    "id": f"send a string of 1 to {MAX_ID_CHARS} Unicode characters",
    "text": "send a string of Unicode characters; decode the source with its right encoding first",
    "lang": "send zh or en, or leave it out to have the language detected",
    "types": f"send a list of 1 to {MAX_TYPES} entity type keys, or leave it out for the default set of the language",
    "metadata": "send an object of JSON values in Unicode, or leave it out",
}
_EXAMPLE = 'send one JSON object in UTF-8, such as {"id": "note-1", "text": "..."}'
_UNKNOWN_FIELD = f"leave it out; the fields are {', '.join(Document.model_fields)}, and metadata takes anything else"


def admit(value: bytes | None) -> Document:
    """The document that a record's value holds, as UTF-8 JSON.

    :class:`DocumentError`, which tells nothing of the value but names of fields, where it holds none.
    """
    if not value:
        raise DocumentError("document", "has no bytes", _EXAMPLE, reason="empty")
    try:
        fields = json.loads(value.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise DocumentError("document", "is not UTF-8", _EXAMPLE, reason="not_json") from None
    except (ValueError, RecursionError):
        raise DocumentError("document", "is not JSON", _EXAMPLE, reason="not_json") from None
    if not isinstance(fields, dict):
        raise DocumentError("document", "is JSON, but not an object", _EXAMPLE)
    try:
        document = Document.model_validate(fields)
        # JSON values are not looked into by pydantic, and Python's parser lets lone surrogates through.
        json.dumps(document.metadata, ensure_ascii=False).encode()
    except ValidationError as error:
        raise _document_error(error) from None
    except (UnicodeEncodeError, RecursionError):
        raise DocumentError("metadata", "holds a lone surrogate", _REMEDIES["metadata"]) from None
    if document.types is not None:
        entity_types.check(document.types)
    return document


def _refuse(constant: str) -> Any:
    raise ValueError("NaN and Infinity are not JSON")


def _document_error(error: ValidationError) -> DocumentError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind, field = first["type"], str(first["loc"][0]) if first["loc"] else "document"
    if not _NAME.fullmatch(field):
        field = "document"
        problem = "has a member that is not a field of a document"
    elif kind == "value_error":  # of Document's own validators, which know not to quote
        problem = first["msg"].removeprefix("Value error, ").partition(";")[0]
    elif kind == "literal_error":
        problem = "is not one of the values it can have"
    elif len(first["loc"]) > 1:
        problem = "holds an entry of the wrong type"
    else:
        problem = _PROBLEMS.get(kind, "is not valid")
    return DocumentError(field, problem, _REMEDIES.get(field, _UNKNOWN_FIELD))
