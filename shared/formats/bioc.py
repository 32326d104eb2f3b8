"""BioC XML and JSON: one passage per document, an annotation per entity with infons ``type`` and ``confidence``.

Offsets count code points where nothing else is asked for, as in PubTator's and most corpora; the paper has UTF-8 bytes.
An inner entity's infon ``parent`` is the id of the annotation around it.
Format: Comeau et al. 2013, https://doi.org/10.1093/database/bat064
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from shared.formats.common import Annotated, Writing, for_xml, library
from shared.formats.offsets import Offsets

_SOURCE = "biobracket"


def write_xml(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """A collection in XML; a character that XML has not becomes U+FFFD."""
    bioc = library("bioc", "bioc", "bioc-xml")
    biocxml = library("bioc.biocxml", "bioc", "bioc-xml")
    with biocxml.iterwrite(out, encoding="utf-8") as writer:
        collection = bioc.BioCCollection()
        collection.source = _SOURCE
        collection.infons = _about(writing)
        writer.write_collection_info(collection)
        for document in documents:
            writer.write_document(_document(bioc, document, writing, lambda text: for_xml(text, writing)))


def write_json(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """A collection in JSON."""
    bioc = library("bioc", "bioc", "bioc-json")
    biocjson = library("bioc.biocjson", "bioc", "bioc-json")
    collection = bioc.BioCCollection()
    collection.source = _SOURCE
    collection.infons = _about(writing)
    head, tail = biocjson.dumps(collection, ensure_ascii=False).rsplit("]", 1)
    out.write(head.encode())
    for number, document in enumerate(documents):
        made = _document(bioc, document, writing, lambda text: text)
        out.write((",\n" if number else "\n").encode() + biocjson.dumps(made, ensure_ascii=False).encode())
    out.write(f"]{tail}\n".encode())


def _about(writing: Writing) -> dict[str, str]:
    return {"offset_unit": writing.unit}


def _document(bioc: Any, document: Annotated, writing: Writing, clean: Callable[[str], str]) -> Any:
    text = clean(document.known_text())
    offsets = Offsets(text, writing.unit)
    made = bioc.BioCDocument()
    made.id = clean(document.id)
    made.infons = {"language": document.extraction.lang, "model_revision": document.extraction.model_revision}
    passage = bioc.BioCPassage()
    passage.offset = 0
    passage.text = text
    for entity in document.entities:
        annotation = bioc.BioCAnnotation()
        annotation.id = entity.id
        annotation.infons = {"type": entity.type, "confidence": f"{entity.confidence:.6g}"}
        if entity.parent_id is not None:
            annotation.infons["parent"] = entity.parent_id
        start, end = offsets[entity.start], offsets[entity.end]
        annotation.add_location(bioc.BioCLocation(start, end - start))
        annotation.text = text[entity.start : entity.end]
        passage.add_annotation(annotation)
    made.add_passage(passage)
    return made
