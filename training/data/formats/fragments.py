"""Compares the fragments of mentions with the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.data.formats.common import Span

_SPACE = re.compile(r"\s+")


def within(text: str, fragments: Sequence[Span]) -> bool:
    """Whether there are fragments, all of them within the text and not empty."""
    return bool(fragments) and all(0 <= start < end <= len(text) for start, end in fragments)


def merged(text: str, fragments: Sequence[Span]) -> list[Span]:
    """The fragments in order; those that touch, or that only white space parts, made one.

    brat and others split a mention at a line break; that does not make it discontinuous.
    """
    spans: list[Span] = []
    for start, end in sorted(fragments):
        if spans and not text[spans[-1][1] : start].strip():
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((start, end))
    return spans


def fits(text: str, fragments: Sequence[Span], surface: str) -> bool:
    """Whether the fragments give the mention's text.

    White space may differ in kind and length: formats that have a line a mention cannot hold a line break. How the
    fragments of a discontinuous mention are joined differs too, so only letters and digits count there, those of the
    fragments or of all that they cover.
    """
    if not within(text, fragments):
        return False
    if len(fragments) == 1:
        start, end = fragments[0]
        return _SPACE.sub(" ", text[start:end]) == _SPACE.sub(" ", surface)
    ordered = sorted(fragments)
    covered = text[ordered[0][0] : max(end for _, end in ordered)]
    parts = "".join(text[start:end] for start, end in ordered)
    return _letters(surface) in (_letters(parts), _letters(covered))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))
