"""W3C Web Annotation: a page of annotations in JSON-LD, each with a position and a quotation of its document.

Positions count code points, as the recommendation has it. Documents are named by URN; no text is needed, only without
it a quotation has no context. Format: https://www.w3.org/TR/annotation-model/
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO
from urllib.parse import quote

from shared.formats.common import Annotated, Writing
from shared.messages import Entity

_CONTEXT = 32  # characters before and after a quotation


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """One ``AnnotationPage`` with the annotations of all documents."""
    out.write(b'{"@context": "http://www.w3.org/ns/anno.jsonld", "type": "AnnotationPage", "items": [')
    for number, item in enumerate(_items(documents)):
        out.write((",\n" if number else "\n").encode() + json.dumps(item, ensure_ascii=False).encode())
    out.write(b"\n]}\n")


def _items(documents: Iterable[Annotated]) -> Iterator[dict[str, Any]]:
    for document in documents:
        source = "urn:x-biobracket:document:" + quote(document.id, safe="")
        for entity in document.entities:
            yield {
                "id": f"{source}#{entity.id}",
                "type": "Annotation",
                "motivation": "tagging",
                "body": {"type": "TextualBody", "purpose": "tagging", "value": entity.type},
                "target": {"source": source, "selector": _selectors(document.text, entity)},
                "biobracket:confidence": entity.confidence,
            }


def _selectors(text: str | None, entity: Entity) -> list[dict[str, Any]]:
    quotation: dict[str, Any] = {"type": "TextQuoteSelector", "exact": entity.text}
    if text is not None:
        quotation["prefix"] = text[max(0, entity.start - _CONTEXT) : entity.start]
        quotation["suffix"] = text[entity.end : entity.end + _CONTEXT]
    return [{"type": "TextPositionSelector", "start": entity.start, "end": entity.end}, quotation]
