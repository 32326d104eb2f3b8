"""Which type a label means: names in both languages and keys, ignoring case, width and spacing."""

from __future__ import annotations

import re
from functools import lru_cache

from services.parsing.alignment import folded
from shared.entity_types import TYPES

_SEPARATORS = str.maketrans("", "", "-_")
_BETWEEN = re.compile(r"[,，、;；]")


class LabelReader:
    """The labels of one segment's line."""

    def __init__(self, types: tuple[str, ...], text: str) -> None:
        """``types``: the keys requested; ``text``: the segment's, which may contain bars of its own."""
        self._names = _names(types)
        self._types = types
        self._text = text
        self._folded_text: str | None = None

    def key(self, label: str) -> str | None:
        """The key that a label means; None if it is neither requested nor in the inventory."""
        return self._names.get(_name(label))

    def is_label(self, after_bar: str) -> bool:
        """Whether the text between an unescaped bar and a closing bracket is a label rather than unescaped text."""
        if "|" not in self._text or self.key(after_bar) in self._types:
            return True
        if self._folded_text is None:
            self._folded_text = folded(self._text)
        return "|" + folded(after_bar) not in self._folded_text

    def names_in(self, listed: str) -> list[str]:
        """The names in a list such as ``Protein, DNA``; empty if one of them means no type."""
        names = _BETWEEN.split(listed)
        return names if all(self.key(name) is not None for name in names) else []


@lru_cache(maxsize=256)
def _names(types: tuple[str, ...]) -> dict[str, str]:
    """Keys by name: first of the types requested, then of the inventory."""
    found: dict[str, str] = {}
    for key in (*types, *TYPES):
        entity_type = TYPES.get(key)
        for name in (key,) if entity_type is None else (key, entity_type.en, entity_type.zh):
            found.setdefault(_name(name), key)
    return found


def _name(label: str) -> str:
    return folded(label).translate(_SEPARATORS)
