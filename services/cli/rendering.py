"""What the command line shows: notes with marked entities, tables, counts and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shared.entity_types import TYPES
from shared.messages import Entity, Extraction

# Legible on dark and light terminals; adjacent types of the inventory get different ones.
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta", "bright_green")
_STYLES = {key: _COLOURS[i % len(_COLOURS)] for i, key in enumerate(TYPES)}

# Control characters become pictures of themselves, so that a note cannot control the terminal. CR is dropped.
_SAFE = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A, 0x0D)} | {0x0D: None, 0x7F: 0x2421}
_SAFE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)

OPEN, CLOSE, GAP = "⟦", "⟧", " … "


def style_of(type_: str) -> str:
    """The colour of an entity type."""
    return _STYLES.get(type_, "white")


def mark(text: str, entities: Sequence[Entity], *, max_chars: int = 1200, context: int = 40) -> Text:
    """The text with every entity marked as ``⟦mention⟧type``, nested ones inside their parents.

    A text longer than ``max_chars`` code points is cut to the ``context`` around entities, up to about ``max_chars``
    in total, with an ellipsis for each omission.
    """
    windows, shown = _windows(text, entities, max_chars, context)
    marked = Text()
    for i, (start, end) in enumerate(windows):
        if i or start:
            marked.append(GAP, style="dim")
        _mark_window(marked, text, start, end, [e for e in shown if start <= e.start and e.end <= end])
    if windows and windows[-1][1] < len(text):
        marked.append(GAP, style="dim")
    if hidden := len(entities) - len(shown):
        marked.append(f"\n({hidden} more entities in parts not shown)", style="dim italic")
    return marked


def _windows(
    text: str, entities: Sequence[Entity], max_chars: int, context: int
) -> tuple[list[tuple[int, int]], list[Entity]]:
    if len(text) <= max_chars:
        return [(0, len(text))], list(entities)
    if not entities:
        return [(0, max_chars)], []
    windows: list[tuple[int, int]] = []
    used = 0
    for entity in sorted(entities, key=lambda e: (e.start, -e.end)):
        start, end = max(0, entity.start - context), min(len(text), entity.end + context)
        if windows and start <= windows[-1][1]:
            start = windows[-1][0]
            end = max(end, windows[-1][1])
            grown = end - windows[-1][1]
        else:
            grown = end - start
        if windows and used + grown > max_chars:
            break
        if windows and start == windows[-1][0]:
            windows[-1] = (start, end)
        else:
            windows.append((start, end))
        used += grown
    return windows, [e for e in entities if any(start <= e.start and e.end <= end for start, end in windows)]


def _mark_window(marked: Text, text: str, start: int, end: int, entities: Sequence[Entity]) -> None:
    # At the same offset, ends come before starts; inner ends first, outer starts first.
    ordered = sorted(entities, key=lambda e: (e.start, -e.end, e.type))
    rank = {id(e): i for i, e in enumerate(ordered)}
    events = sorted(
        [(e.end, 0, -rank[id(e)], e) for e in ordered] + [(e.start, 1, rank[id(e)], e) for e in ordered],
        key=lambda event: event[:3],
    )
    at = start
    inside: list[Entity] = []
    for offset, opens, _, entity in events:
        marked.append(text[at:offset].translate(_SAFE), style=style_of(inside[-1].type) if inside else "")
        at = offset
        style = style_of(entity.type)
        if opens:
            marked.append(OPEN, style=f"bold {style}")
            inside.append(entity)
        else:
            marked.append(CLOSE, style=f"bold {style}").append(entity.type, style=f"italic {style}")
            inside.remove(entity)
    marked.append(text[at:end].translate(_SAFE))


def note(text: str, extraction: Extraction) -> RenderableType:
    """A note with its entities marked, below a heading."""
    entities = extraction.entities
    nested = sum(e.parent_id is not None for e in entities)
    heading = Text(extraction.document_id.translate(_SAFE), style="bold")
    heading.append(
        f"  {extraction.lang}, {len(text)} characters, {len(entities)} entities, {nested} nested", style="dim"
    )
    body = mark(text, entities)
    if not entities:
        body.append("\n(no entities)", style="dim italic")
    return Group(heading, Padding(body, (0, 0, 1, 2)))


def entities_table(extraction: Extraction) -> Table:
    """One row per entity, nested ones indented below their parents."""
    table = Table(box=None, pad_edge=False)
    for column in ("type", "start", "end", "confidence", "text"):
        table.add_column(column, justify="right" if column in ("start", "end", "confidence") else "left")
    by_id = {e.id: e for e in extraction.entities}
    for entity in sorted(extraction.entities, key=lambda e: (e.start, -e.end, e.type)):
        depth, parent = 0, by_id.get(entity.parent_id or "")
        while parent is not None and depth < len(by_id):
            depth, parent = depth + 1, by_id.get(parent.parent_id or "")
        table.add_row(
            Text(entity.type, style=style_of(entity.type)),
            str(entity.start),
            str(entity.end),
            f"{entity.confidence:.2f}",
            Text("  " * depth + entity.text.translate(_SAFE)),
        )
    return table


def summary(extractions: Iterable[Extraction], seconds: float) -> Table:
    """Entities by type and language, then totals: nested entities, documents, seconds and entities per second."""
    extractions = list(extractions)
    by_type = Counter((e.type, x.lang) for x in extractions for e in x.entities)
    documents = Counter(x.lang for x in extractions)
    nested = Counter(x.lang for x in extractions for e in x.entities if e.parent_id is not None)
    entities = Counter(x.lang for x in extractions for _ in x.entities)
    table = Table(title="Summary", title_justify="left", title_style="bold")
    for column in ("type", "English", "Chinese", "all"):
        table.add_column(column, justify="left" if column == "type" else "right")

    def row(name: Text | str, en: int, zh: int) -> None:
        table.add_row(name, str(en), str(zh), str(en + zh))

    for type_ in sorted({t for t, _ in by_type}, key=lambda t: (-by_type[t, "en"] - by_type[t, "zh"], t)):
        row(Text(type_, style=style_of(type_)), by_type[type_, "en"], by_type[type_, "zh"])
    table.add_section()
    row("entities", entities["en"], entities["zh"])
    row("nested entities", nested["en"], nested["zh"])
    row("documents", documents["en"], documents["zh"])
    table.add_section()
    table.add_row("seconds", "", "", f"{seconds:.1f}")
    table.add_row("entities per second", "", "", f"{sum(entities.values()) / seconds:.1f}" if seconds > 0 else "")
    return table


@dataclass(frozen=True, slots=True)
class LiveCounts:
    """Progress of the stream. ``rate``: documents per second, None if unknown; ``lag``: records not yet committed."""

    documents: int
    entities: int
    lag: int
    rate: float | None = None

    def __str__(self) -> str:
        rate = "" if self.rate is None else f", rate {self.rate:.2f} documents per second"
        return f"documents {self.documents}, entities {self.entities}, lag {self.lag}{rate}"


def counts_table(counts: LiveCounts) -> Table:
    """The counts as one row."""
    table = Table(box=None, pad_edge=False)
    for column in ("documents", "entities", "lag", "documents per second"):
        table.add_column(column, justify="right")
    rate = "" if counts.rate is None else f"{counts.rate:.2f}"
    table.add_row(str(counts.documents), str(counts.entities), str(counts.lag), rate)
    return table


def setting(name: str, value: str, meaning: str) -> RenderableType:
    """A setting: environment variable and current value, with its meaning below."""
    return Group(Text(name, style="bold").append("=").append(value, style="cyan"), Padding(Text(meaning), (0, 0, 0, 4)))
