"""Readers of corpora, one JSON object a line: ``{"id", "text", "lang", "entities"}``, of which each is
``{"start", "end", "type", "text"}``.

Offsets count Unicode code points, ``end`` is exclusive. Types are mapped to the shared inventory on reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import entity_types
from shared.entity_types import CORPUS_TYPES, TYPES
from shared.language import detect
from shared.messages import Lang
from shared.settings import Settings


class CorpusError(ValueError):
    """A corpus cannot be read; the message names file, line, field and remedy, never its text."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A gold mention: offsets into the text, type by canonical key."""

    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its gold mentions and the types that its corpus annotates (an absent one is a true negative)."""

    id: str
    text: str
    lang: Lang
    mentions: tuple[Mention, ...]
    types: tuple[str, ...]


def corpus_folder(name: str, settings: Settings) -> Path:
    """The folder of a corpus given as a path or as a name below the folder that ``settings.corpora`` names."""
    below = [settings.corpora / name] if settings.corpora else []
    for folder in [Path(name), *below]:
        if folder.is_dir():
            return folder
    raise CorpusError(
        f"corpus: no folder `{name}`; give a path, or a name below the folder that BIOBRACKET_CORPORA names"
        + ("" if settings.corpora else " (it is not set)")
    )


def read(folder: Path, split: str, types: dict[str, str] | None = None) -> list[Example]:
    """The texts of ``<folder>/<split>.jsonl``.

    ``types`` maps the corpus's labels to canonical keys; by default the mapping known for the folder's name, else each
    label must be a key or a name of a type (``Disease``, ``cell_line``).
    """
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        have = ", ".join(sorted(f.stem for f in folder.glob("*.jsonl"))) or "none"
        raise CorpusError(f"split: no file {split}.jsonl in the corpus folder; it has: {have}")
    mapping = types or CORPUS_TYPES.get(folder.name)
    rows = list(_rows(file))
    labels = {mention["type"] for _, row in rows for mention in row["entities"]}
    if mapping is None:
        mapping = {label: entity_types.key_of(label) or label for label in labels}
    if unknown := sorted(labels - mapping.keys()) + sorted(set(mapping.values()) - TYPES.keys()):
        raise CorpusError(
            f"types: {file.name} has labels without a type of the inventory: {', '.join(unknown)}; map each to a key "
            "with --map label=key"
        )
    keys = tuple(dict.fromkeys(mapping.values()))
    return [_example(file, number, row, mapping, keys) for number, row in rows]


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    row["id"], row["text"], row["entities"]
                except (ValueError, KeyError, TypeError):
                    raise CorpusError(
                        f"{file.name}, line {number}: not a JSON object with id, text and entities"
                    ) from None
                yield number, row


def _example(file: Path, number: int, row: dict[str, Any], mapping: dict[str, str], keys: tuple[str, ...]) -> Example:
    text = str(row["text"])
    mentions = []
    for mention in row["entities"]:
        start, end = mention["start"], mention["end"]
        if not (0 <= start < end <= len(text)) or text[start:end] != mention.get("text", text[start:end]):
            raise CorpusError(f"{file.name}, line {number}: entities: offsets do not give the mention's text")
        mentions.append(Mention(start, end, mapping[mention["type"]]))
    lang: Lang = row.get("lang") or detect(text)
    if lang not in ("zh", "en"):
        raise CorpusError(f"{file.name}, line {number}: lang: must be `zh` or `en`")
    return Example(str(row["id"]), text, lang, tuple(mentions), keys)
