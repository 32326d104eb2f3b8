"""Corpora in JSON Lines: ``{"id", "text", "lang", "entities"}``, each entity ``{"start", "end", "type", "text"}``.

Offsets count Unicode code points, ``end`` is exclusive. Types are mapped to the shared inventory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import entity_types
from shared.entity_types import CORPUS_TYPES, TYPES
from shared.messages import Document, Lang
from shared.settings import Settings
from shared.text.language import detect


class CorpusError(ValueError):
    """A corpus cannot be read; the message names file, line, field and remedy, without text."""


@dataclass(frozen=True, slots=True)
class GoldMention:
    """A gold mention: offsets into the text, and the key of its type."""

    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its gold mentions and the types its corpus annotates (one without mentions is a true negative)."""

    id: str
    text: str
    lang: Lang
    mentions: tuple[GoldMention, ...]
    types: tuple[str, ...]
    trimmed: int = 0
    """Number of mentions that lost white space at their ends."""


def corpus_folder(name: str, settings: Settings) -> Path:
    """The folder of a corpus, given as a path or as a name below ``settings.corpora``."""
    below = [settings.corpora / name] if settings.corpora else []
    for folder in [Path(name), *below]:
        if folder.is_dir():
            return folder
    raise CorpusError(
        f"corpus: no folder `{name}`; give a path, or a name below the folder that BIOBRACKET_CORPORA names"
        + ("" if settings.corpora else " (it is not set)")
    )


def read(folder: Path, split: str, types: dict[str, str] | None = None) -> list[Example]:
    """The texts of ``<folder>/<split>.jsonl``, at least one.

    Labels are mapped by the table for the folder's name if it has all of them, else by the key or name of a type
    (``Disease``, ``cell_line``). ``types`` takes precedence: it maps labels to keys, or to the empty string to leave
    out their mentions. White space at the ends of mentions is trimmed.
    """
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        have = ", ".join(sorted(f.stem for f in folder.glob("*.jsonl"))) or "none"
        raise CorpusError(f"split: no file {split}.jsonl in the corpus folder; it has: {have}")
    rows = list(_rows(file))
    if not rows:
        raise CorpusError(f"split: {file.name} has no texts; name another split")
    mapping = _mapping(file, {mention["type"] for _, row in rows for mention in row["entities"]}, types or {})
    keys = tuple(dict.fromkeys(key for key in mapping.values() if key))
    return [_example(file, number, row, mapping, keys) for number, row in rows]


def read_all(given: str, split: str, settings: Settings) -> dict[str, list[Example]]:
    """A split of several corpora by folder name, given as ``name,name=number,…``: all texts, or the first ones.

    Raises CorpusError if it cannot be parsed, or a corpus cannot be read.
    """
    found = {}
    for part_ in given.split(","):
        name, equals, number = part_.partition("=")
        if not name or (equals and not (number.isdigit() and int(number))):
            raise CorpusError(f"corpora: `{part_}` is not a corpus or `corpus=texts`; write them as genia=300,bc5cdr")
        folder = corpus_folder(name, settings)
        if folder.name in found:
            raise CorpusError(f"corpora: two of them are called {folder.name}; rename one of the folders")
        found[folder.name] = read(folder, split)[: int(number) if equals else None]
    return found


def part(examples: Sequence[Example], folds: int, fold: int, *, inside: bool) -> list[Example]:
    """The examples ``inside`` or outside fold ``fold`` of ``folds``; a text's fold depends only on the text."""
    return [e for e in examples if (int(hashlib.sha256(e.text.encode()).hexdigest()[:8], 16) % folds == fold) is inside]


def documents_of(examples: Sequence[Example]) -> list[Document]:
    """The texts as documents with their position as id, since a corpus may use an id twice."""
    return [Document(id=str(i), text=e.text, lang=e.lang, types=e.types) for i, e in enumerate(examples)]


def _mapping(file: Path, labels: set[str], given: dict[str, str]) -> dict[str, str]:
    """The key of each label; empty if its mentions are left out."""
    known = CORPUS_TYPES.get(file.parent.name)
    if (
        known is None or not labels <= known.keys() | given.keys()
    ):  # a user's folder may happen to have the name of a known corpus
        known = {label: key for label in sorted(labels) if (key := entity_types.key_of(label))}
    mapping = known | given
    if unknown := sorted(labels - mapping.keys()):
        raise CorpusError(
            f"types: {file.name} has labels that no type in the inventory has: {', '.join(unknown)}; give each a type "
            "with --map label=key, or leave it out with --map label="
        )
    if unknown := sorted(set(mapping.values()) - TYPES.keys() - {""}):
        raise CorpusError(
            f"types: no type in the inventory has the key {', '.join(unknown)}; the keys are: {', '.join(TYPES)}"
        )
    if unknown := sorted(label for label, key in given.items() if not key and label not in labels | known.keys()):
        raise CorpusError(
            f"types: {file.name} has no label {', '.join(unknown)} to leave out; its labels are: "
            f"{', '.join(sorted(labels)) or 'none'}"
        )
    if not any(mapping.values()):
        raise CorpusError(f"types: no label of {file.name} has a type; give at least one with --map label=key")
    return mapping


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    row["text"].encode()  # fails on a lone surrogate
                    well_formed = "id" in row and all(
                        isinstance(m["start"], int) and isinstance(m["end"], int) and isinstance(m["type"], str)
                        for m in row["entities"]
                    )
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    well_formed = False
                if not well_formed:
                    raise CorpusError(
                        f"{file.name}, line {number}: not a JSON object with id, text and entities, each of which has "
                        "start, end and type"
                    )
                yield number, row


def _example(file: Path, number: int, row: dict[str, Any], mapping: dict[str, str], keys: tuple[str, ...]) -> Example:
    text: str = row["text"]
    mentions = []
    trimmed = 0
    for mention in row["entities"]:
        start, end = mention["start"], mention["end"]
        if not (0 <= start < end <= len(text)) or text[start:end] != mention.get("text", text[start:end]):
            raise CorpusError(f"{file.name}, line {number}: entities: offsets do not give the mention's text")
        surface = text[start:end]
        inside = (start + len(surface) - len(surface.lstrip()), end - len(surface) + len(surface.rstrip()))
        if inside[0] >= inside[1]:
            raise CorpusError(f"{file.name}, line {number}: entities: offsets enclose only white space")
        trimmed += inside != (start, end)
        if key := mapping[mention["type"]]:
            mentions.append(GoldMention(*inside, key))
    lang: Lang = row.get("lang") or detect(text)
    if lang not in ("zh", "en"):
        raise CorpusError(f"{file.name}, line {number}: lang: must be `zh` or `en`")
    return Example(str(row["id"]), text, lang, tuple(mentions), keys, trimmed)
