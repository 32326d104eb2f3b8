"""Predictions on disk: one extraction per line, in the order of the documents, to be scored again later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from shared.messages import Document, Extraction, check_offsets


class PredictionsError(ValueError):
    """Predictions are unreadable or belong to other texts; the message names file, line and remedy, without text."""


def write(file: Path, extractions: Iterable[Extraction]) -> None:
    """Writes the extractions, including the text of their mentions."""
    file.write_text("".join(e.model_dump_json() + "\n" for e in extractions), encoding="utf-8")


def read(file: Path, documents: Sequence[Document]) -> list[Extraction]:
    """The extractions of exactly these documents, in their order.

    Raises PredictionsError unless there is one for each document, made from the same text (by SHA-256) and for the same
    types, with offsets that match the mentions' text. Ids may differ.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise PredictionsError(
            f"predictions: cannot read {file} ({error.strerror}); name a predictions.jsonl that `--report` wrote"
        ) from None
    remedy = "give the --corpus, --split, --limit and --map it was made with, or create it again with --report"
    if len(lines) != len(documents):
        raise PredictionsError(f"predictions: {file} has {len(lines)} lines for {len(documents)} texts; {remedy}")
    found = []
    for number, (line, document) in enumerate(zip(lines, documents, strict=True), 1):
        place = f"predictions: {file}, line {number}"
        try:
            extraction = Extraction.model_validate_json(line)
        except ValidationError:
            # `from None`: the cause would quote the line.
            raise PredictionsError(
                f"{place}: not an extraction of this version; create it again with --report"
            ) from None
        if extraction.text_sha256 != document.sha256:
            raise PredictionsError(f"{place}: made from another text; {remedy}")
        if document.types is not None and set(extraction.types) != set(document.types):
            raise PredictionsError(f"{place}: made for other types; {remedy}")
        if not all(check_offsets(document.text, entity) for entity in extraction.entities):
            raise PredictionsError(f"{place}: offsets do not match the mention's text; create it again with --report")
        found.append(extraction)
    return found
