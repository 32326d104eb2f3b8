"""CBLUE's JSON for named entities (CMeEE): a list of objects with ``id``, ``text`` and ``entities``.

``end_idx`` is the last character of the mention, as in CMeEE. Types of CMeEE have its labels (``dis``, ``sym``, …),
others their keys. Format: https://tianchi.aliyun.com/dataset/95414
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import BinaryIO

from shared.entity_types import CORPUS_TYPES
from shared.formats.common import Annotated, Writing

_LABELS = {key: label for label, key in CORPUS_TYPES["cmeee_v2"].items()}


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """All documents in one JSON list."""
    out.write(b"[")
    for number, document in enumerate(documents):
        entities = []
        for e in document.entities:
            label = _LABELS.get(e.type)
            if label is None:
                writing.changed["entity of a type that CMeEE has not, under its key"] += 1
            entities.append({"start_idx": e.start, "end_idx": e.end - 1, "type": label or e.type, "entity": e.text})
        row = {"id": document.id, "text": document.known_text(), "entities": entities}
        out.write((",\n" if number else "\n").encode() + json.dumps(row, ensure_ascii=False).encode())
        if entities:
            writing.lost["confidence, which CBLUE cannot hold"] += len(entities)
    out.write(b"\n]\n")
