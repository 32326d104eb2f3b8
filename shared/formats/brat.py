"""brat standoff: for each document a ``.txt`` file and an ``.ann`` file, and one ``annotation.conf`` with the types.

Offsets count code points. A mention over several lines is one fragment per line, as brat writes it. The confidence is
a note. Format: https://brat.nlplab.org/standoff.html
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO
from urllib.parse import quote

from shared.formats.common import Annotated, Writing
from shared.messages import Entity

_LINE = re.compile("[^\r\n]+")
_UNSAFE = re.compile(r"[^\w.-]|\A[.-]|\.\Z")
_MOST_BYTES = 200  # of a file name; file systems take 255 with the ending


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """All files, as a ZIP archive."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files(documents, writing):
            # With a time of its own, the same documents would be another archive each time.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def files(documents: Iterable[Annotated], writing: Writing) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file."""
    types: set[str] = set()
    for document in documents:
        name = file_name(document.id)
        if name != document.id:
            writing.changed["id percent-encoded or shortened to make a file name"] += 1
        types.update(entity.type for entity in document.entities)
        yield f"{name}.txt", document.known_text().encode()
        yield f"{name}.ann", "".join(_lines(document, writing)).encode()
    yield "annotation.conf", _configuration(types).encode()


def file_name(document_id: str) -> str:
    """A name for an id: unsafe characters percent-encoded, a long one cut and made unique by a digest."""
    name = _UNSAFE.sub(lambda found: _encoded(found[0]), document_id)
    if len(name.encode()) > _MOST_BYTES:
        digest = hashlib.sha256(document_id.encode()).hexdigest()[:16]
        name = f"{name.encode()[: _MOST_BYTES - 17].decode(errors='ignore')}-{digest}"
    return name


def _encoded(char: str) -> str:
    return quote(char, safe="") if char not in ".-" else f"%{ord(char):02X}"


def _lines(document: Annotated, writing: Writing) -> Iterator[str]:
    text = document.known_text()
    number = 0
    for entity in document.entities:
        if not (fragments := _fragments(text, entity)):
            writing.lost["entity of line breaks alone, which brat cannot hold"] += 1
            continue
        number += 1
        spans = ";".join(f"{start} {end}" for start, end in fragments)
        surface = " ".join(text[start:end] for start, end in fragments)
        yield f"T{number}\t{entity.type} {spans}\t{surface}\n"
        yield f"#{number}\tAnnotatorNotes T{number}\tconfidence {entity.confidence:.4f}\n"


def _fragments(text: str, entity: Entity) -> list[tuple[int, int]]:
    return [found.span() for found in _LINE.finditer(text, entity.start, entity.end)]


def _configuration(types: Iterable[str]) -> str:
    # brat draws only the types that it is told of, and wants all four sections.
    return "\n".join(["[entities]", *sorted(types), "", "[relations]", "", "[events]", "", "[attributes]", ""])
