"""Compares the fragments of a mention with the text."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from itertools import permutations

from training.data.formats.common import Span

_SPACE = re.compile(r"\s+")
_MOST_ORDERS = 5  # most fragments to try in every order; a mention with more is tried only sorted and as given
# What tools write for characters that they or their encodings do not support.
_GREEK = "αβγδεζηθικλμνξοπρστυφχψω"
_LATIN = str.maketrans(_GREEK, "abgdezhtiklmnxoprstufcpo")
_NAMES = str.maketrans({c: unicodedata.name(c).split()[-1].lower().replace("lamda", "lambda") for c in _GREEK})
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict.fromkeys("‘’‚′`´", "'"),
        **dict.fromkeys("“”„″«»", '"'),
        "×": "x",
        "ς": "σ",
    }
)
_LOST = "?\ufffd"


def within(text: str, fragments: Sequence[Span]) -> bool:
    """Whether there are any fragments, and all are non-empty and within the text."""
    return bool(fragments) and all(0 <= start < end <= len(text) for start, end in fragments)


def merged(text: str, fragments: Sequence[Span]) -> list[Span]:
    """The fragments in order, joined where they touch or only white space separates them.

    brat and other tools split a mention at a line break, which does not make it discontinuous.
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

    White space may differ in kind and length: a format with one line per mention cannot represent a line break. Tools
    also join the fragments of a discontinuous mention differently and in a different order, so for these only letters
    and digits are compared, either of the fragments or of the whole span that they cover.
    """
    if not within(text, fragments):
        return False
    if len(fragments) == 1:
        start, end = fragments[0]
        return _SPACE.sub(" ", text[start:end]) == _SPACE.sub(" ", surface)
    ordered = sorted(fragments)
    covered = text[ordered[0][0] : max(end for _, end in ordered)]
    letters = _letters(surface)
    return letters == _letters(covered) or any(
        letters == _letters("".join(text[start:end] for start, end in order)) for order in _orders(fragments, ordered)
    )


def fits_normalised(text: str, fragments: Sequence[Span], surface: str) -> bool:
    """Whether the fragments give the mention's text, apart from changes that tools make to characters.

    These are case, compatibility forms and accents (NFKD), Greek letters spelled out or replaced by Latin ones, dashes
    and quotes, HTML entities, white space at the ends, and question marks for characters that an encoding lacks.
    """
    if not within(text, fragments):
        return False
    ordered = sorted(fragments)
    covered = text[ordered[0][0] : max(end for _, end in ordered)]
    parts = [" ".join(text[start:end] for start, end in order) for order in _orders(fragments, ordered)]
    return any(
        fold(found) == fold(surface) for found in (covered, *parts) for fold in (_by_letter, _by_name)
    ) or _lost_characters(covered, surface)


def trimmed(text: str, span: Span) -> Span | None:
    """The span without white space at its ends; None if it contains nothing else."""
    inside = text[slice(*span)]
    start = span[0] + len(inside) - len(inside.lstrip())
    end = span[1] - len(inside) + len(inside.rstrip())
    return (start, end) if start < end else None


def _orders(fragments: Sequence[Span], ordered: list[Span]) -> list[tuple[Span, ...]]:
    return list(permutations(ordered)) if len(ordered) <= _MOST_ORDERS else [tuple(ordered), tuple(fragments)]


def _by_letter(text: str) -> str:
    return _folded(text).translate(_LATIN)


def _by_name(text: str) -> str:
    return _folded(text).translate(_NAMES)


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFKD", html.unescape(text)).casefold().translate(_PLAIN)
    return _SPACE.sub(" ", "".join(c for c in plain if not unicodedata.combining(c))).strip()


def _lost_characters(text: str, surface: str) -> bool:
    """Whether they differ only where non-ASCII characters became ``?`` or U+FFFD in less than half of ``surface``."""
    if len(text) != len(surface):
        return False
    lost = [(a, b) for a, b in zip(text, surface, strict=True) if a != b]
    return 0 < 2 * len(lost) < len(text) and all(b in _LOST and not a.isascii() for a, b in lost)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))
