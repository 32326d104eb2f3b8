"""The extraction itself as JSON, a line a document; offsets in the unit asked for, named if not code points."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, BinaryIO

from shared.formats.common import Annotated, Writing
from shared.formats.offsets import Offsets, OffsetUnit


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """All documents in one file of JSON lines."""
    for document in documents:
        out.write(json.dumps(in_unit(document, writing.unit), ensure_ascii=False).encode() + b"\n")


def in_unit(document: Annotated, unit: OffsetUnit) -> dict[str, Any]:
    """The extraction as JSON has it, with offsets in a unit; its ``offset_unit`` says which, except for code points.

    Ids of entities stay as they are. FormatError where the text is needed and not known.
    """
    plain = document.extraction.model_dump(mode="json")
    if unit != "codepoint":
        offsets = Offsets(document.known_text(), unit)
        for entity in plain["entities"]:
            entity["start"], entity["end"] = offsets[entity["start"]], offsets[entity["end"]]
        plain["offset_unit"] = unit
    return plain
