"""CBLUE's JSON for named entities (CMeEE, CMeEE-V2): objects with ``text`` and ``entities``, in a list or one per line.

``end_idx`` is the last character in some releases and the one after it in others; the entities' texts tell which.
Format: https://tianchi.aliyun.com/dataset/95414
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from training.data.corpora import CorpusError
from training.data.formats.common import AnnotatedText, Annotation, Reading, json_items, single_file
from training.data.formats.fragments import within


class _Entity(BaseModel):
    start_idx: int
    end_idx: int
    type: str
    entity: str


class _Row(BaseModel):
    text: str
    entities: list[_Entity]
    id: str | int | None = None


def read(source: Path, reading: Reading) -> Iterator[AnnotatedText]:
    """The texts of a file."""
    rows: list[tuple[str, _Row]] = []
    for place, item in json_items(single_file(source), reading):
        try:
            rows.append((place, _Row.model_validate(item)))
        except ValidationError as error:
            reading.invalid(place, error)
    after = _after_the_last(rows)
    if after:
        reading.notes["mention whose end_idx is its last character"] = sum(len(row.entities) for _, row in rows)
    for number, (place, row) in enumerate(rows, 1):
        annotations = [
            Annotation(((e.start_idx, e.end_idx + after),), e.type, e.entity, f"{place}, entities.{i}")
            for i, e in enumerate(row.entities)
        ]
        name = f"{source.stem}-{number}" if row.id is None else str(row.id)
        yield AnnotatedText(name, row.text, tuple(annotations), place)


def _after_the_last(rows: list[tuple[str, _Row]]) -> int:
    """What to add to each ``end_idx`` of the file: 1 where it is a mention's last character, else 0."""
    first: dict[int, str] = {}
    for place, row in rows:
        for i, e in enumerate(row.entities):
            for after in (0, 1):
                span = (e.start_idx, e.end_idx + after)
                if within(row.text, [span]) and row.text[slice(*span)] == e.entity:
                    first.setdefault(after, f"{place}, entities.{i}")
    if len(first) == 2:
        raise CorpusError(
            f"{first[1]}: end_idx: is the mention's last character here, but the one after it at {first[0]}; a file "
            "must keep to one of them"
        )
    return next(iter(first), 0)
