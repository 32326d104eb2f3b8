"""Symbolic tagging, scheme ``per-type.v1``: a text with square brackets around the mentions of one entity type.

Nested mentions nest brackets. Brackets cannot express spans that cross, so those go to further lines. A bracket or
backslash of the text itself is escaped with a backslash, which makes every line exactly reversible. Method: "A Unified
Biomedical Named Entity Recognition Framework with Large Language Models" (arXiv 2510.08902).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Span = tuple[int, int]

OPEN, CLOSE, ESCAPE = "[", "]", "\\"
_SPECIAL = re.compile(r"[\[\]\\]")
_MARK = re.compile(r"\\[\[\]\\]|[\[\]\\]")  # an escaped character, or one alone


def escape(text: str) -> str:
    """The text with a backslash before each bracket and backslash."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def unescape(text: str) -> str:
    """The inverse of :func:`escape`. ValueError for what it cannot have written."""
    plain, spans = decode(text)
    if spans:
        raise ValueError("tagged text: an unescaped bracket where none may be")
    return plain


def encode(text: str, spans: Iterable[Span]) -> list[str]:
    """The text with brackets around the spans ``(start, end)``, in code points; no line where there is no span.

    Equal spans collapse. In the order of their start, the longer first, each goes to the first line where it crosses
    no other. ValueError for a span that is empty or not within the text.
    """
    # Each line has its spans, and the ends of those that hold the current place, innermost last.
    lines: list[tuple[list[Span], list[int]]] = []
    for start, end in sorted(set(spans), key=lambda span: (span[0], -span[1])):
        if not 0 <= start < end <= len(text):
            raise ValueError(f"spans: ({start}, {end}) is empty or not within the {len(text)} characters of the text")
        for _, ends in lines:
            while ends and ends[-1] <= start:
                ends.pop()
        place = next((i for i, (_, ends) in enumerate(lines) if not ends or end <= ends[-1]), len(lines))
        if place == len(lines):
            lines.append(([], []))
        lines[place][0].append((start, end))
        lines[place][1].append(end)
    return [_line(text, line) for line, _ in lines]


def _line(text: str, spans: list[Span]) -> str:
    """One line of properly nested spans, sorted by start, the longer first."""
    parts: list[str] = []
    at = 0
    ends: list[int] = []

    def copy_to(place: int) -> None:
        nonlocal at
        while ends and ends[-1] <= place:
            parts.extend((escape(text[at : ends[-1]]), CLOSE))
            at = ends.pop()
        parts.append(escape(text[at:place]))
        at = place

    for start, end in spans:
        copy_to(start)
        parts.append(OPEN)
        ends.append(end)
    copy_to(len(text))
    return "".join(parts)


def decode(line: str) -> tuple[str, list[Span]]:
    """The text of a line that :func:`encode` wrote, and the line's spans in the order of their opening brackets.

    ValueError, which never quotes the line, where brackets do not pair up, hold nothing or say one span twice, or
    where a backslash escapes nothing. For what a free-running model says, see the parsing service.
    """
    parts: list[str] = []
    spans: list[Span] = []
    opened: list[int] = []  # indices into spans
    at = length = 0
    for mark in _MARK.finditer(line):
        parts.append(line[at : mark.start()])
        length += mark.start() - at
        at = mark.end()
        match mark[0]:
            case "[":
                opened.append(len(spans))
                spans.append((length, length))
            case "]":
                if not opened:
                    raise ValueError(f"tagged text: the bracket closed at character {mark.start()} was never opened")
                index = opened.pop()
                start = spans[index][0]
                if start == length:
                    raise ValueError(f"tagged text: the brackets closed at character {mark.start()} hold nothing")
                spans[index] = (start, length)
            case "\\":
                raise ValueError(f"tagged text: the backslash at character {mark.start()} escapes nothing")
            case escaped:
                parts.append(escaped[1])
                length += 1
    if opened:
        raise ValueError(f"tagged text: {len(opened)} opened brackets are never closed")
    if len(set(spans)) < len(spans):
        raise ValueError("tagged text: one span is bracketed twice")
    parts.append(line[at:])
    return "".join(parts), spans
