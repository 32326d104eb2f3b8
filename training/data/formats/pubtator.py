"""PubTator: ``id|t|title``, ``id|a|abstract``, then a tab-separated line for each mention, all in one file.

A mention line has id, start, end, text, label and usually an identifier; a composite mention has a further column with
its parts, and counts as a single mention. Relation lines (``CID`` and others) are ignored. Offsets continue from title
to abstract, which are separated by one character.
Format: https://www.ncbi.nlm.nih.gov/research/bionlp/APIs/format/
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.data.formats.common import AnnotatedText, Annotation, Reading, lines, single_file

_PART = re.compile(r"([^|\t]*)\|([ta])\|(.*)")
_OFFSET = re.compile(r"[0-9]{1,9}")


@dataclass(slots=True)
class _Document:
    id: str
    title: str
    place: str
    abstract: str = ""
    annotations: list[Annotation] = field(default_factory=list)

    def text(self) -> AnnotatedText:
        # On separate lines: titles often lack the full stop that would separate them from the abstract.
        text = f"{self.title}\n{self.abstract}" if self.abstract else self.title
        return AnnotatedText(self.id, text, tuple(self.annotations), self.place)


def read(source: Path, reading: Reading) -> Iterator[AnnotatedText]:
    """The documents of a file; each begins with a title line."""
    now: _Document | None = None
    for place, line in lines(single_file(source), reading):
        if not line.strip():
            continue
        part = _PART.fullmatch(line)
        if part is not None and part[2] == "t":
            if now is not None:
                yield now.text()
            now = _Document(part[1], part[3], place)
            continue
        columns = line.split("\t")
        if now is None or now.id != (part[1] if part else columns[0]):
            reading.bad(place, "line outside its document", "its id must be that of the title line above")
        elif part is not None:
            now.abstract = part[3]
        elif len(columns) >= 5 and _OFFSET.fullmatch(columns[1]) and _OFFSET.fullmatch(columns[2]):
            span = (int(columns[1]), int(columns[2]))
            now.annotations.append(Annotation((span,), columns[4], columns[3], place))
        elif len(columns) < 4 or _OFFSET.fullmatch(columns[1]):
            reading.bad(place, "not a text, mention or relation", "a mention has at least 5 tab-separated columns")
    if now is not None:
        yield now.text()
