"""What the readers of all formats share: annotated texts, options, and reading lines and JSON.

A reader turns a file or folder into texts and records the place of each item. It keeps the corpus's offsets;
:mod:`training.data.formats.conversion` checks them against the text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from shared.errors import quotable
from training.data.corpora import CorpusError

Discontinuous = Literal["skip", "cover"]
Documents = Literal["sentence", "docstart"]
Span = tuple[int, int]

_MARK = "\ufeff"  # the byte order mark that some editors put before UTF-8


@dataclass(frozen=True, slots=True)
class Annotation:
    """A mention as the corpus has it. Offsets are code points; a discontinuous mention has several fragments."""

    fragments: tuple[Span, ...]
    label: str
    text: str  # the mention's text according to the corpus
    place: str  # file and line or item, for errors


@dataclass(frozen=True, slots=True)
class AnnotatedText:
    """A text of a corpus with its mentions."""

    id: str
    text: str
    annotations: tuple[Annotation, ...]
    place: str


@dataclass(slots=True)
class Reading:
    """Options for reading a corpus, and what was left out or noticed while reading."""

    discontinuous: Discontinuous = "skip"
    skip_bad: bool = False
    type_infon: str = "type"
    column: int | None = None  # counted from 1; None for the last
    documents: Documents = "sentence"
    advance: Callable[[int], object] = lambda _: None  # called with bytes read
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def bad(self, place: str, problem: str, remedy: str) -> None:
        """Raises CorpusError or, with ``skip_bad``, counts the item, which the caller then leaves out.

        Neither ``problem`` nor ``remedy`` may contain text of the corpus.
        """
        if not self.skip_bad:
            # `from None`: the error that told of the problem may quote the corpus.
            raise CorpusError(f"{place}: {problem}; {remedy}, or leave it out with --skip-bad") from None
        self.left_out[problem] += 1

    def invalid(self, place: str, error: ValidationError) -> None:
        """Reports an item with a missing or invalid field, like :meth:`bad`."""
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        field_ = ".".join(quotable(part) for part in first["loc"] if isinstance(part, str)) or "item"
        where = ".".join(map(quotable, first["loc"]))
        problem = f"{field_}: {first['msg'].lower()}"
        self.bad(f"{place}, {where}" if where else place, problem, "fix it, or choose another --format")


def single_file(source: Path) -> Path:
    """The source of a format that keeps all texts in one file. Raises CorpusError if it is not a file."""
    if not source.is_file():
        raise CorpusError(f"INPUT: {source.name} is not a file; this format is read from a single file, so name that")
    return source


def decoded(content: bytes, place: str) -> str:
    """Decodes UTF-8. Raises CorpusError if the bytes are not valid UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise CorpusError(f"{place}: not UTF-8; convert the file to UTF-8") from None


def lines(file: Path, reading: Reading) -> Iterator[tuple[str, str]]:
    """Place and content of each line. Only LF and CRLF end lines: texts may contain other Unicode line separators."""
    with file.open("rb") as content:
        for number, line in enumerate(content, 1):
            place = f"{file.name}, line {number}"
            text = decoded(line, place).removesuffix("\n").removesuffix("\r")
            yield place, text.removeprefix(_MARK) if number == 1 else text
            reading.advance(len(line))


def json_items(file: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    """Place and value of each item of a JSON list, of JSON Lines, or of a single object."""
    content = decoded(file.read_bytes(), file.name).removeprefix(_MARK)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") != "Extra data":  # one value is complete and another follows: JSON Lines
            line = getattr(error, "lineno", 1)  # neither a number of thousands of digits nor nesting as deep has one
            raise CorpusError(f"{file.name}, line {line}: not JSON; fix it, or choose another --format") from None
        yield from _json_lines(content, file, reading)
        return
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        yield f"{file.name}, item {number}", item
    reading.advance(file.stat().st_size)


def _json_lines(content: str, file: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            place = f"{file.name}, line {number}"
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError):
                reading.bad(place, "not JSON", "fix it, or choose another --format")
        reading.advance(len(line.encode(errors="surrogatepass")) + 1)
