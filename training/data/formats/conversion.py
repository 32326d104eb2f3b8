"""Converts a corpus to the format of :mod:`training.data.corpora`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.entity_types import TYPES
from shared.messages import Lang
from shared.text.language import detect
from training.data.corpora import CorpusError
from training.data.formats import READERS, Format
from training.data.formats.common import AnnotatedText, Annotation, Reading, Span
from training.data.formats.fragments import fits, fits_normalised, merged, trimmed, within


@dataclass(slots=True)
class Summary:
    """What was written. :class:`Reading` has what was left out, and why."""

    texts: Counter[Lang] = field(default_factory=Counter)
    mentions: Counter[str] = field(default_factory=Counter)  # by label as written
    labels: set[str] = field(default_factory=set)  # as read, before any choice


def convert(
    source: Path,
    format: Format,
    out: Path,
    reading: Reading,
    lang: Lang | None = None,
    labels: Set[str] = frozenset(),
    mapping: Mapping[str, str] | None = None,
) -> Summary:
    """Writes the texts of ``source`` to ``out``, one JSON object per line. On an error no file is written.

    ``labels``: those to keep, empty for all; ``mapping``: labels to keys of the inventory. Raises CorpusError if the
    source cannot be read or has no text, or if ``out`` cannot be written.
    """
    if unknown := sorted(set((mapping or {}).values()) - TYPES.keys()):
        raise CorpusError(f"map: no type in the inventory has the key {', '.join(unknown)}; keys: {', '.join(TYPES)}")
    if not source.exists():
        raise CorpusError(f"INPUT: no file or folder {source}; give one that exists")
    summary = Summary()
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8", newline="\n") as written:
            for text in READERS[format](source, reading):
                if (row := _row(text, reading, summary, lang, labels, mapping or {})) is not None:
                    written.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not summary.texts:
            raise CorpusError(f"INPUT: {source.name} has no annotated text; check --format and the file's content")
        os.replace(part, out)
    except OSError as error:
        raise CorpusError(f"{error.filename}: {(error.strerror or 'cannot be read or written').lower()}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return summary


def _row(
    text: AnnotatedText,
    reading: Reading,
    summary: Summary,
    lang: Lang | None,
    labels: Set[str],
    mapping: Mapping[str, str],
) -> dict[str, Any] | None:
    if not text.text.strip():
        reading.left_out["empty text"] += 1
        return None
    try:
        f"{text.id}{text.text}".encode()
    except UnicodeEncodeError:
        reading.bad(text.place, "id or text with a lone surrogate, which UTF-8 cannot encode", "fix it")
        return None
    found: set[tuple[int, int, str]] = set()
    for annotation in text.annotations:
        summary.labels.add(annotation.label)
        if labels and annotation.label not in labels:
            reading.left_out["mention whose label --types leaves out"] += 1
        elif (span := _span(text.text, annotation, reading)) is not None:
            mention = (*span, mapping.get(annotation.label, annotation.label))
            if mention in found:
                reading.left_out["duplicate mention"] += 1
            found.add(mention)
    in_order = sorted(found, key=lambda m: (m[0], -m[1], m[2]))
    entities = [{"start": start, "end": end, "type": t, "text": text.text[start:end]} for start, end, t in in_order]
    summary.mentions.update(t for _, _, t in found)
    language = lang or detect(text.text)
    summary.texts[language] += 1
    return {"id": text.id, "text": text.text, "lang": language, "entities": entities}


def _span(text: str, annotation: Annotation, reading: Reading) -> Span | None:
    """The span of a mention; None if it is left out."""
    if not annotation.label or not annotation.label.isprintable():
        reading.bad(annotation.place, "label that is empty or unprintable", "name the mention's type")
        return None
    if not within(text, annotation.fragments):
        reading.bad(annotation.place, "offsets that lie outside the text or enclose nothing", "correct them")
        return None
    spans = merged(text, annotation.fragments)
    if len(spans) > 1 and reading.discontinuous == "skip":
        reading.left_out["discontinuous mention"] += 1
        return None
    if not fits(text, annotation.fragments, annotation.text):
        if not fits_normalised(text, annotation.fragments, annotation.text):
            reading.bad(annotation.place, "offsets that do not give the mention's text", "correct them")
            return None
        reading.notes["mention normalised by the corpus, its text taken from the document"] += 1
    span = trimmed(text, (spans[0][0], spans[-1][1]))
    if span is None:
        reading.bad(annotation.place, "offsets that enclose only white space", "correct them")
        return None
    if span != (spans[0][0], spans[-1][1]):
        reading.notes["mention trimmed of white space at its ends"] += 1
    if len(spans) > 1:
        reading.notes["discontinuous mention replaced by the span that covers it"] += 1
    return span
