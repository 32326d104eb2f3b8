"""PubTator: ``id|t|title``, ``id|a|abstract``, then a tab-separated line for each mention; a blank line ends it.

The first line of a text is its title. Further line breaks become spaces, so offsets, which count code points, stay.
Format: https://www.ncbi.nlm.nih.gov/research/bionlp/APIs/format/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from shared.formats.common import Annotated, Writing, one_line

_NOT_ID = re.compile(r"[|\t\r\n]")


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """All documents in one file."""
    for document in documents:
        out.write("".join(f"{line}\n" for line in _lines(document, writing)).encode())
        out.write(b"\n")


def _lines(document: Annotated, writing: Writing) -> Iterator[str]:
    id_ = _NOT_ID.sub("_", document.id)
    if id_ != document.id:
        writing.changed["character of an id that PubTator cannot hold written as _"] += 1
    text = document.known_text()
    title, newline, abstract = text.partition("\n")
    yield f"{id_}|t|{one_line(title, 'text', writing)}"
    yield f"{id_}|a|{one_line(abstract, 'text', writing)}"
    if newline and not abstract:
        writing.changed["line break at the end of a text left out"] += 1
    for entity in document.entities:
        surface = re.sub(r"[\t\r\n]", " ", entity.text)
        yield f"{id_}\t{entity.start}\t{entity.end}\t{surface}\t{entity.type}"
    if document.entities:
        writing.lost["confidence, which PubTator cannot hold"] += len(document.entities)
