"""Tokens for formats that are made of them: cut so that every entity begins and ends with one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from shared.messages import Entity
from shared.text.segmentation import CJK

# A CJK character; letters and digits with what stands between them, such as IL-2; white space; any other character.
_TOKEN = re.compile(rf"[{CJK}]|[^\W{CJK}](?:[^\s{CJK}]*[^\W{CJK}])?[\u0300-\u036f]*|(?P<space>\s+)|.", re.DOTALL)


class Token(NamedTuple):
    """A piece of a text: ``text[start:end]``. ``space``: whether it is white space."""

    start: int
    end: int
    space: bool


def tokens(text: str, entities: Iterable[Entity]) -> list[Token]:
    """The tokens of a text, white space included, so that they are the whole text."""
    bounds = sorted({0, len(text), *(at for e in entities for at in (e.start, e.end))})
    return [
        Token(*found.span(), found["space"] is not None)
        for start, end in pairwise(bounds)
        for found in _TOKEN.finditer(text, start, end)
    ]
