"""Pieces: the units of text between which brackets can be placed.

A piece is a run of letters, a run of digits, a single CJK character or any other single character, with the space
before it if there is one. An opening bracket goes after that space and a closing one before the next, as in
``the [CD28] gene``, the way the base model has seen brackets in text. A text is the concatenation of its pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_CJK = "\u2e80-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_PIECE = re.compile(
    # A space belongs to what follows unless that is white space too.
    rf"(?: (?=\S))?(?:[^\W\d_{_CJK}]+|[0-9]+|.)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of a text. ``cores[i]``: where piece i begins, without its space; ``ends[i]``: where it ends."""

    text: str
    starts: tuple[int, ...]
    cores: tuple[int, ...]
    ends: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ends)

    def spaced(self, i: int) -> bool:
        """Whether piece i begins with a space."""
        return self.cores[i] > self.starts[i]

    def core(self, i: int) -> str:
        """Piece i without its space."""
        return self.text[self.cores[i] : self.ends[i]]


def split(text: str) -> Pieces:
    """The pieces of a text, in order; their concatenation is the text."""
    starts: list[int] = []
    cores: list[int] = []
    ends: list[int] = []
    for match in _PIECE.finditer(text):
        start, end = match.span()
        starts.append(start)
        cores.append(start + 1 if end - start > 1 and text[start] == " " else start)
        ends.append(end)
    return Pieces(text, tuple(starts), tuple(cores), tuple(ends))


def to_piece_spans(pieces: Pieces, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Character spans as half-open piece ranges; spans that do not end at piece boundaries are left out."""
    if not spans:
        return []
    first = {core: i for i, core in enumerate(pieces.cores)}
    last = {end: i for i, end in enumerate(pieces.ends)}
    return [(first[s], last[e] + 1) for s, e in spans if s in first and e in last and first[s] <= last[e]]
