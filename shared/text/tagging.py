r"""Symbolic tagging, scheme ``labelled.v1``: a text with brackets around its mentions, each closed by its type.

``[[CD28 | Protein] surface receptor | DNA]`` has a protein within a DNA. Nested mentions nest brackets. Brackets cannot
express spans that cross, so those go to further rows, each a copy of the whole text. Brackets, bars and backslashes of
text and labels are escaped with a backslash, which makes every row exactly reversible. Method: "A Unified Biomedical
Named Entity Recognition Framework with Large Language Models" (arXiv 2510.08902); labels inside the line: arXiv
2601.17898.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TypedSpan = tuple[int, int, str]
"""Start, end (exclusive) and label of a mention, in code points."""

_SPECIAL = re.compile(r"[\[\]\\|]")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
# An escaped character, a labelled closing bracket, or a special character alone.
_MARK = re.compile(r"\\[\[\]\\|]| \| ((?:[^\[\]\\|]|\\[\[\]\\|])*)\]|[\[\]\\|]")


def escape(text: str) -> str:
    """The text with a backslash before each bracket, bar and backslash."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def encode(text: str, mentions: Iterable[TypedSpan]) -> list[str]:
    """The rows that hold the mentions: copies of the text with labelled brackets; none where there is no mention.

    Equal mentions collapse. In the order of their start, the longer first, each goes to the first row where it crosses
    no other; those of one span nest in the order given, the first outermost. ValueError for a span that is empty or not
    within the text.
    """
    # Each row has its mentions, and the ends of those around the current place, innermost last.
    rows: list[tuple[list[TypedSpan], list[int]]] = []
    for mention in sorted(dict.fromkeys(mentions), key=lambda each: (each[0], -each[1])):
        start, end, _ = mention
        if not 0 <= start < end <= len(text):
            raise ValueError(f"spans: ({start}, {end}) is empty or not within the {len(text)} characters of the text")
        for _, ends in rows:
            while ends and ends[-1] <= start:
                ends.pop()
        place = next((i for i, (_, ends) in enumerate(rows) if not ends or end <= ends[-1]), len(rows))
        if place == len(rows):
            rows.append(([], []))
        rows[place][0].append(mention)
        rows[place][1].append(end)
    return [_row(text, row) for row, _ in rows]


def _row(text: str, mentions: list[TypedSpan]) -> str:
    """One row of properly nested mentions, sorted by start, the longer first."""
    parts: list[str] = []
    at = 0
    around: list[tuple[int, str]] = []  # end and label of the mentions that are open, innermost last

    def copy_to(place: int) -> None:
        nonlocal at
        while around and around[-1][0] <= place:
            end, label = around.pop()
            parts.append(f"{escape(text[at:end])} | {escape(label)}]")
            at = end
        parts.append(escape(text[at:place]))
        at = place

    for start, end, label in mentions:
        copy_to(start)
        parts.append("[")
        around.append((end, label))
    copy_to(len(text))
    return "".join(parts)


def decode(row: str) -> tuple[str, list[TypedSpan]]:
    """The text of a row that :func:`encode` wrote, and the row's mentions in the order of their opening brackets.

    ValueError, which never quotes the row, where brackets do not pair up, hold nothing, have no label or say a mention
    twice, where a bar is not a label's, or where a backslash escapes nothing. For what a free-running model says, see
    the parsing service.
    """
    parts: list[str] = []
    mentions: list[TypedSpan] = []
    opened: list[int] = []  # indices into mentions
    at = length = 0
    for mark in _MARK.finditer(row):
        parts.append(row[at : mark.start()])
        length += mark.start() - at
        at = mark.end()
        label: str | None = mark[1]
        if label is not None:
            if not opened:
                raise ValueError(f"tagged text: the bracket closed at character {at - 1} was never opened")
            index = opened.pop()
            start = mentions[index][0]
            if start == length:
                raise ValueError(f"tagged text: the brackets closed at character {at - 1} hold nothing")
            mentions[index] = (start, length, _ESCAPED.sub(r"\1", label))
        elif mark[0] == "[":
            opened.append(len(mentions))
            mentions.append((length, length, ""))
        elif mark[0] in "]|\\":
            problem = {"]": "bracket has no label", "|": "bar begins no label", "\\": "backslash escapes nothing"}
            raise ValueError(f"tagged text: at character {mark.start()} a {problem[mark[0]]}")
        else:
            parts.append(mark[0][1])
            length += 1
    if opened:
        raise ValueError(f"tagged text: {len(opened)} opened brackets are never closed")
    if len(set(mentions)) < len(mentions):
        raise ValueError("tagged text: one mention is bracketed twice")
    parts.append(row[at:])
    return "".join(parts), mentions
