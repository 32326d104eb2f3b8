"""CBLUE's JSON for named entities (CMeEE, CMeEE-V2): objects with ``text`` and ``entities``, in a list or one per line.

``end_idx`` is the last character in some releases and the one after it in others; the entities' texts show which.
Format: https://tianchi.aliyun.com/dataset/95414
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

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
    after, deviating = _after_the_last(rows)
    for number, (place, row) in enumerate(rows, 1):
        if number in deviating:
            where, other = deviating[number]
            reading.bad(
                where,
                "end_idx is the mention's last character in one text and the one after it in another",
                f"a file must use one convention; correct this text, or the rest, which follow {other}",
            )
            continue
        if after and row.entities:
            reading.notes["mention whose end_idx is its last character"] += len(row.entities)
        annotations = [
            Annotation(((e.start_idx, e.end_idx + after),), e.type, e.entity, f"{place}, entities.{i}")
            for i, e in enumerate(row.entities)
        ]
        name = f"{source.stem}-{number}" if row.id is None else str(row.id)
        yield AnnotatedText(name, row.text, tuple(annotations), place)


def _after_the_last(rows: list[tuple[str, _Row]]) -> tuple[int, dict[int, tuple[str, str]]]:
    """What to add to each ``end_idx`` by the majority of mentions: 1 if it is a mention's last character, else 0.

    Also the rows, counted from 1, with a mention of the other convention: the place of that mention, and for comparison
    the place of one that follows the majority.
    """
    told: tuple[dict[int, str], dict[int, str]] = ({}, {})  # by row, the place of the first mention that fits
    mentions = [0, 0]
    for number, (place, row) in enumerate(rows, 1):
        for i, e in enumerate(row.entities):
            for after in (0, 1):
                span = (e.start_idx, e.end_idx + after)
                if within(row.text, [span]) and row.text[slice(*span)] == e.entity:
                    told[after].setdefault(number, f"{place}, entities.{i}")
                    mentions[after] += 1
    usual = int(mentions[1] > mentions[0])
    other = next(iter(told[usual].values()), "")
    return usual, {number: (where, other) for number, where in told[1 - usual].items()}
