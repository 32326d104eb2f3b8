"""BioC, as XML or JSON: documents of passages (and sentences) with offsets and stand-off annotations.

A document's text is its passages placed at their offsets, padded with spaces. Most corpora count offsets in code
points, some in UTF-8 bytes (as in the BioC paper) or in Java's UTF-16 units. Which one a document uses is inferred from
the texts of its annotations.
Format: Comeau et al. 2013, https://doi.org/10.1093/database/bat064
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from pydantic import BaseModel, ValidationError

from shared.errors import quotable
from training.data.corpora import CorpusError
from training.data.formats.common import AnnotatedText, Annotation, Reading, Span, json_items
from training.data.formats.fragments import fits, fits_normalised

_CODE_POINTS = "code points"
_UNITS: dict[str, Callable[[str], int]] = {
    _CODE_POINTS: len,
    "UTF-8 bytes": lambda text: len(text.encode("utf-8", "surrogatepass")),
    "UTF-16 units": lambda text: len(text.encode("utf-16-le", "surrogatepass")) // 2,
}
# A wrong offset must not fill memory with spaces; the most that separates two passages is a table.
_WIDEST_GAP = 1_000_000


class _Location(BaseModel):
    offset: int
    length: int


class _Annotation(BaseModel):
    text: str = ""
    locations: list[_Location] = []
    infons: dict[str, Any] = {}


class _Sentence(BaseModel):
    offset: int
    text: str | None = None
    annotations: list[_Annotation] = []


class _Passage(_Sentence):
    sentences: list[_Sentence] = []


class _Document(BaseModel):
    passages: list[_Passage]
    id: str | int | None = None
    annotations: list[_Annotation] = []

    def pieces(self) -> list[tuple[int, str]]:
        """Offset and text of each passage, or of its sentences if it has no text itself."""
        parts = [part for p in self.passages for part in ([p] if p.text is not None else p.sentences)]
        return sorted((part.offset, part.text) for part in parts if part.text)

    def all_annotations(self) -> list[_Annotation]:
        """The annotations of the document, its passages and their sentences."""
        parts = [part for p in self.passages for part in (p, *p.sentences)]
        return [*self.annotations, *(a for part in parts for a in part.annotations)]


def read(source: Path, reading: Reading) -> Iterator[AnnotatedText]:
    """The documents of a file, or of all .xml and .json files of a folder and its subfolders."""
    if source.is_dir():
        files = sorted(
            f for f in source.rglob("*") if f.suffix.lower() in (".xml", ".json") and not f.name.startswith(".")
        )
    else:
        files = [source]
    for file in files:
        for number, (place, plain) in enumerate(_documents(file, reading), 1):
            try:
                document = _Document.model_validate(plain)
            except ValidationError as error:
                reading.invalid(place, error)
                continue
            name = f"{file.stem}-{number}" if document.id is None else str(document.id)
            text = _text(document, name, place, reading)
            if text is not None:
                yield text


def _text(document: _Document, name: str, place: str, reading: Reading) -> AnnotatedText | None:
    annotations = document.all_annotations()
    layouts = [_laid_out(document.pieces(), annotations, unit) for unit in _UNITS]
    # `max` takes the first of equals: code points, which most corpora count.
    best = max((layout for layout in layouts if layout), key=lambda layout: layout.merit, default=None)
    if best is None:
        remedy = "correct their offsets, which count from the document's start"
        reading.bad(place, "passages that overlap or are far apart", remedy)
        return None
    found = []
    for i, (at, annotation) in enumerate(zip(best.fragments, annotations, strict=True)):
        label = annotation.infons.get(reading.type_infon)
        where = f"{place}, annotation {i + 1}"
        if not label or not isinstance(label, str):
            have = ", ".join(map(quotable, annotation.infons)) or "none"
            reading.bad(
                where,
                f"annotation without the infon `{reading.type_infon}`",
                f"name the one that holds the label with --type-infon (there are: {have})",
            )
            continue
        given = tuple((spot.offset, spot.offset + spot.length) for spot in annotation.locations)
        if best.unit != _CODE_POINTS and at != given:
            reading.notes[f"mention whose offsets counted {best.unit}"] += 1
        found.append(Annotation(at, label, annotation.text, where))
    return AnnotatedText(name, best.text, tuple(found), place)


@dataclass(frozen=True, slots=True)
class _Layout:
    """A document laid out on the assumption that its offsets count a certain unit."""

    unit: str
    text: str
    fragments: list[tuple[Span, ...]]  # of each annotation, in code points
    merit: tuple[int, int]  # annotations whose offsets give their text, then how little space is left between passages


def _laid_out(pieces: list[tuple[int, str]], annotations: list[_Annotation], unit: str) -> _Layout | None:
    """The pieces at their offsets, with spaces in between; None if two overlap."""
    size = _UNITS[unit]
    parts: list[str] = []
    end = spare = 0
    for offset, piece in pieces:
        gap = offset - end
        if not 0 <= gap <= _WIDEST_GAP:
            return None
        parts += [" " * gap, piece]
        end = offset + size(piece)
        spare += max(0, gap - 1)
    text = "".join(parts)
    points = {at: point for point, at in enumerate(accumulate(map(size, text), initial=0))}
    # -1, which is never valid, stands for an offset outside the text or inside a character.
    fragments = [
        tuple((points.get(spot.offset, -1), points.get(spot.offset + spot.length, -1)) for spot in a.locations)
        for a in annotations
    ]
    right = sum(
        fits(text, at, a.text) or fits_normalised(text, at, a.text)
        for at, a in zip(fragments, annotations, strict=True)
    )
    return _Layout(unit, text, fragments, (right, -spare))


# -- files -------------------------------------------------------------------------------------------------------------


def _documents(file: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as content:
        if content.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
            content.seek(0)
            yield from _xml_documents(content, file, reading)
            return
    for place, item in json_items(file, reading):
        yield from _json_documents(place, item)


def _json_documents(place: str, item: Any) -> Iterator[tuple[str, Any]]:
    """A single document, or the documents of a collection or of a PubTator 3 response."""
    for key in ("documents", "PubTator3"):
        if isinstance(item, dict) and isinstance(item.get(key), list):
            yield from ((f"{place}, {key}.{i}", document) for i, document in enumerate(item[key]))
            return
    yield place, item


def _xml_documents(content: IO[bytes], file: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    number = at = 0
    try:
        # No external resource is loaded, and expat limits entity expansion.
        for _, element in ElementTree.iterparse(content):  # noqa: S314
            if element.tag == "document":
                number += 1
                yield f"{file.name}, document {number}", _plain_document(element)
                element.clear()
                reading.advance(content.tell() - at)
                at = content.tell()
    except ElementTree.ParseError as error:
        raise CorpusError(f"{file.name}, line {error.position[0]}: not well-formed XML; fix the file") from None
    except (LookupError, ValueError):  # from the encoding that the file declares
        raise CorpusError(f"{file.name}: an encoding that expat cannot read; convert the file to UTF-8") from None


def _plain_document(element: ElementTree.Element) -> dict[str, Any]:
    passages = [
        {**_plain_part(passage), "sentences": [_plain_part(sentence) for sentence in passage.findall("sentence")]}
        for passage in element.findall("passage")
    ]
    return {"id": element.findtext("id"), "passages": passages, "annotations": _plain_annotations(element)}


def _plain_part(element: ElementTree.Element) -> dict[str, Any]:
    return {
        "offset": element.findtext("offset"),
        "text": element.findtext("text"),
        "annotations": _plain_annotations(element),
    }


def _plain_annotations(element: ElementTree.Element) -> list[dict[str, Any]]:
    return [
        {
            "text": annotation.findtext("text", ""),
            "locations": [location.attrib for location in annotation.findall("location")],
            "infons": {str(infon.get("key")): infon.text for infon in annotation.findall("infon")},
        }
        for annotation in element.findall("annotation")
    ]
