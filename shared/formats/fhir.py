"""FHIR R4: a ``Bundle`` of a ``DocumentReference`` for each document and an ``Observation`` for each entity.

An entity is a mention and no clinical fact, which may be denied or of another person: hence a preliminary Observation,
and no Condition. Offsets are components that name their unit, code points. Resources are checked by
``fhir.resources``. Format: https://hl7.org/fhir/R4/bundle.html
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from shared.entity_types import TYPES
from shared.formats.common import Annotated, Writing, for_xml, library
from shared.messages import Entity

_NAMES = uuid.UUID("8a1c6f0e-5d0b-4a57-9a49-0d6c9c0f1f6b")
_SYSTEM = "urn:x-biobracket:"


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """One bundle of type ``collection``."""
    # R4B leaves these resources as they are in R4.
    reference = library("fhir.resources.R4B.documentreference", "fhir.resources", "fhir").DocumentReference
    observation = library("fhir.resources.R4B.observation", "fhir.resources", "fhir").Observation
    out.write(b'{"resourceType": "Bundle", "type": "collection", "entry": [')
    first = True
    for document in documents:
        url = _url(document.id)
        made = [(url, reference(**_reference(document, writing)))]
        made += [
            (_url(document.id, e.id), observation(**_observation(document, url, e, writing))) for e in document.entities
        ]
        for full_url, resource in made:
            out.write(b"\n" if first else b",\n")
            out.write(f'{{"fullUrl": "{full_url}", "resource": {resource.model_dump_json()}}}'.encode())
            first = False
    out.write(b"\n]}\n")


def _url(*names: str) -> str:
    return f"urn:uuid:{uuid.uuid5(_NAMES, chr(0x1F).join(names))}"


def _reference(document: Annotated, writing: Writing) -> dict[str, Any]:
    attachment: dict[str, Any] = {
        "contentType": "text/plain; charset=utf-8",
        "language": document.extraction.lang,
    }
    if text := document.known_text():  # FHIR has no empty values
        attachment["data"] = base64.b64encode(text.encode()).decode()
    return {
        "resourceType": "DocumentReference",
        "status": "current",
        "identifier": [{"system": f"{_SYSTEM}document", "value": for_xml(document.id, writing)}],
        "content": [{"attachment": attachment}],
    }


def _observation(document: Annotated, url: str, entity: Entity, writing: Writing) -> dict[str, Any]:
    text = for_xml(entity.text, writing)
    return {
        "resourceType": "Observation",
        "status": "preliminary",
        "identifier": [{"system": f"{_SYSTEM}entity", "value": entity.id}],
        "code": {
            "coding": [{"system": f"{_SYSTEM}type", "code": entity.type, "display": _display(entity.type)}],
            "text": "mention in a text",
        },
        "derivedFrom": [{"reference": url}],
        "valueString": text,
        "method": {"text": f"biobracket {document.extraction.model_revision}"},
        "component": list(_components(entity)),
    }


def _components(entity: Entity) -> Iterator[dict[str, Any]]:
    for name, what, value in (
        ("start", "first character, in Unicode code points from 0", {"valueInteger": entity.start}),
        ("end", "character after the last, in Unicode code points from 0", {"valueInteger": entity.end}),
        ("confidence", "calibrated probability", {"valueQuantity": {"value": round(entity.confidence, 6)}}),
    ):
        yield {"code": {"coding": [{"system": f"{_SYSTEM}component", "code": name}], "text": what}, **value}


def _display(key: str) -> str:
    return TYPES[key].en if key in TYPES else key
