"""The command that writes the JSON Schemas of what is on the wires: ``biobracket schemas``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from services.cli.console import fail, out


def write_schemas(
    folder: Annotated[Path, typer.Argument(help="Folder for the files; it is created.")] = Path("docs/schemas"),
) -> None:
    """Write a JSON Schema for each message on the topics and over HTTP."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas().items():
            (folder / f"{name}.json").write_text(as_json(schema), encoding="utf-8")
            out.print(str(folder / f"{name}.json"), highlight=False, soft_wrap=True)
    except OSError as error:
        fail(f"folder: {folder} cannot be written ({error.strerror}); choose another")


def as_json(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def schemas() -> dict[str, dict[str, Any]]:
    """By file name: the values of the topics, and the headers of a dead letter as an object of strings."""
    from shared.backends.records import DeadLetterReason
    from shared.messages import Document, Extraction
    from shared.selection.feedback import NewFeedback

    number = {"type": "string", "pattern": "^[0-9]+$"}
    text = {"type": "string"}
    letter = {
        "title": "DeadLetterHeaders",
        "description": "Headers of a record on the dead-letters topic; key and value are those of the record.",
        "type": "object",
        "properties": {
            "biobracket.reason": {"enum": list(get_args(DeadLetterReason)), "description": "Why it is there."},
            "biobracket.field": {**text, "description": "The field at fault, if one is."},
            "biobracket.at-ms": {**number, "description": "When it was written, milliseconds since 1970."},
            "biobracket.topic": {**text, "description": "Where the record, or its original, stands."},
            "biobracket.topic-id": {**text, "description": "Hex UUID of that topic; may be empty."},
            "biobracket.partition": number,
            "biobracket.offset": number,
            "biobracket.span": {**number, "description": "How many offsets it takes, if more than one."},
            "biobracket.timestamp-ms": number,
        },
        "required": [
            f"biobracket.{name}" for name in ("reason", "at-ms", "topic", "partition", "offset", "timestamp-ms")
        ],
    }
    found = {
        "document": Document.model_json_schema(),
        "extraction": Extraction.model_json_schema(mode="serialization"),
        "feedback": NewFeedback.model_json_schema() | {"additionalProperties": True},
        "dead-letter-headers": letter,
    }
    return {
        name: {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema} for name, schema in found.items()
    }
