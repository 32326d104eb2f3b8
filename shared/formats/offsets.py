"""Offsets in the units that others count: Unicode code points, UTF-16 units, UTF-8 bytes."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal

OffsetUnit = Literal["codepoint", "utf16", "byte"]


class Offsets:
    """The offsets of a text's code points in a unit: ``offsets[i]`` is where code point i begins."""

    def __init__(self, text: str, unit: OffsetUnit = "codepoint") -> None:
        self._table: list[int] | None = None
        # In a text of ASCII, as most are in English, all units are the same.
        if unit != "codepoint" and not text.isascii():
            size = _utf16 if unit == "utf16" else _utf8
            self._table = list(accumulate(map(size, text), initial=0))

    def __getitem__(self, code_point: int) -> int:
        return code_point if self._table is None else self._table[code_point]


def _utf16(char: str) -> int:
    return 2 if char > "\uffff" else 1


def _utf8(char: str) -> int:
    return 1 if char < "\x80" else 2 if char < "\u0800" else 3 if char < "\U00010000" else 4
