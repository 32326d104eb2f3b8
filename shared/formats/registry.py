"""The formats that results are written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.errors import FormatError
from shared.formats import (
    bioc,
    brat,
    cblue,
    conll,
    docbin,
    fhir,
    html_page,
    json_lines,
    parquet,
    pubtator,
    web_annotation,
)
from shared.formats.common import Write, Writing
from shared.formats.offsets import OffsetUnit

FormatKey = Literal[
    "json", "bioc-xml", "bioc-json", "pubtator", "brat", "conll", "cblue", "w3c", "docbin", "parquet", "fhir", "html"
]


@dataclass(frozen=True, slots=True)
class Format:
    """A format. ``units``: what its offsets may count, the first where nothing is asked for."""

    write: Write
    media_type: str
    suffix: str
    units: tuple[OffsetUnit, ...] = ("codepoint",)


_ANY: tuple[OffsetUnit, ...] = ("codepoint", "utf16", "byte")

FORMATS: dict[FormatKey, Format] = {
    "json": Format(json_lines.write, "application/x-ndjson", ".jsonl", _ANY),
    "bioc-xml": Format(bioc.write_xml, "application/xml", ".xml", _ANY),
    "bioc-json": Format(bioc.write_json, "application/vnd.bioc+json", ".json", _ANY),
    "pubtator": Format(pubtator.write, "text/x-pubtator; charset=utf-8", ".pubtator"),
    "brat": Format(brat.write, "application/zip", ".zip"),
    "conll": Format(conll.write, "text/x-conll; charset=utf-8", ".conll"),
    "cblue": Format(cblue.write, "application/x-cblue+json", ".json"),
    "w3c": Format(web_annotation.write, "application/ld+json", ".jsonld"),
    "docbin": Format(docbin.write, "application/x-spacy-docbin", ".spacy"),
    "parquet": Format(parquet.write, "application/vnd.apache.parquet", ".parquet", _ANY),
    "fhir": Format(fhir.write, "application/fhir+json", ".json"),
    "html": Format(html_page.write, "text/html; charset=utf-8", ".html"),
}


def writing(key: FormatKey, unit: OffsetUnit | None) -> Writing:
    """Options for a format. FormatError where its offsets count another unit."""
    units = FORMATS[key].units
    if unit is not None and unit not in units:
        raise FormatError("offset_unit", f"of {key} is always {units[0]}", "leave it out, or choose another format")
    return Writing(unit=unit or units[0])
