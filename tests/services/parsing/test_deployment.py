from __future__ import annotations

import asyncio
from typing import Any

from services.parsing.brackets import parse_lines
from services.parsing.deployment import Parsing
from shared.messages import Segment, TaggedLine
from shared.runtime.metrics import REPAIRS

SERVICE: Any = Parsing.func_or_class
TEXT = "the gene abc binds"
SEGMENT = Segment(document_id="d", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")


def test_repairs_are_counted_by_kind() -> None:
    seen: list[tuple[Any, ...]] = []
    service = object.__new__(SERVICE)
    service._observe = lambda *observed: seen.append(observed)
    lines = (
        TaggedLine(segment=SEGMENT, types=("protein", "dna"), tagged="the gene [abc | DNA] binds", presence=1.0),
        TaggedLine(segment=SEGMENT, types=("dna",), tagged="the [gene [abc] binds", presence=1.0),
    )
    parsed = asyncio.run(service.parse(lines))
    assert parsed == parse_lines(lines)
    assert parsed.repairs
    assert seen == [(REPAIRS, count, {"kind": kind}) for kind, count in parsed.repairs.items()]
