"""What the writers of all formats share: extractions with their texts, options, and what was lost on the way."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import BinaryIO

from shared.errors import FormatError
from shared.formats.offsets import OffsetUnit
from shared.messages import Entity, Extraction, check_offsets

_LINE_BREAK = re.compile("[\r\n]")
# What XML 1.0 has no way to write, except lone surrogates, which no text here holds.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Annotated:
    """An extraction and the text that it is of, where that is known. Made by :func:`annotated`."""

    extraction: Extraction
    text: str | None

    @property
    def id(self) -> str:
        return self.extraction.document_id

    @property
    def entities(self) -> Sequence[Entity]:
        """By place, an outer one before what lies in it."""
        return sorted(self.extraction.entities, key=lambda e: (e.start, -e.end, e.type))

    def known_text(self) -> str:
        """The text. FormatError where it is not known."""
        if self.text is None:
            raise FormatError(
                "text",
                "is not known, and this format needs it",
                "results hold no text: give the documents as well, or choose w3c or parquet",
            )
        return self.text


@dataclass(slots=True)
class Writing:
    """Options of writing, and what was lost or changed while writing.

    ``unit``: of offsets, in formats that leave a choice; ``lost``, ``changed``: counts by what and why.
    """

    unit: OffsetUnit = "codepoint"
    lost: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


Write = Callable[[Iterable[Annotated], BinaryIO, Writing], None]
"""Writes documents to a file that is written from start to end; FormatError where one cannot be written."""


def annotated(extraction: Extraction, text: str | None) -> Annotated:
    """The extraction with its text. FormatError where that is another text, or offsets do not give their mentions."""
    if text is not None:
        if hashlib.sha256(text.encode("utf-8")).hexdigest() != extraction.text_sha256:
            raise FormatError(
                "text", "is not the one that the result is of", "give the version of the document it was made from"
            )
        if not all(check_offsets(text, entity) for entity in extraction.entities):
            raise FormatError("entities", "have offsets that do not give their text", "extract the document again")
    return Annotated(extraction, text)


def one_line(text: str, what: str, writing: Writing) -> str:
    """The text with a space for every CR and LF, which keeps its length; counted as a change of ``what``."""
    if _LINE_BREAK.search(text) is None:
        return text
    writing.changed[f"line break in {what} written as space"] += len(_LINE_BREAK.findall(text))
    return _LINE_BREAK.sub(" ", text)


def for_xml(text: str, writing: Writing) -> str:
    """The text with U+FFFD for every character that XML cannot hold; counted as a change."""
    if (found := len(_NOT_XML.findall(text))) == 0:
        return text
    writing.changed["character that XML cannot hold written as U+FFFD"] += found
    return _NOT_XML.sub("\ufffd", text)


def flat(entities: Sequence[Entity], format_: str, writing: Writing) -> list[Entity]:
    """The entities that a format without nesting holds: the outermost, and of crossing ones the first.

    The rest is counted as lost. ``entities``: as from :attr:`Annotated.entities`.
    """
    kept: list[Entity] = []
    for entity in entities:
        if not kept or entity.start >= kept[-1].end:
            kept.append(entity)
        elif entity.end <= kept[-1].end:
            writing.lost[f"entity nested in another, which {format_} cannot hold"] += 1
        else:
            writing.lost[f"entity that crosses another, which {format_} cannot hold"] += 1
    return kept


def library(module: str, package: str, format_: str) -> ModuleType:
    """A module of a library that only this format needs. FormatError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise FormatError(
            "format", f"{format_} needs {package}, which is not installed", "pip install 'biobracket[export]'"
        ) from None
