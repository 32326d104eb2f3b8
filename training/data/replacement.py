"""Replaces mentions of a text by others of the same types, so that words are not learnt by heart.

What takes a mention's place comes from a text that is annotated with the same types in the same language, with the
mentions that are nested in it. Mention replacement as in arXiv 2010.11683.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from shared.messages import Lang
from training.data.corpora import Example, GoldMention

Guideline: TypeAlias = tuple[tuple[str, ...], Lang]
"""The types that a text is annotated with, and its language."""

_SHARE = 0.5  # of a segment's mentions that are replaced


class Replacements:
    """The distinct outermost mentions of texts, by guideline and types."""

    def __init__(self, examples: Iterable[Example]) -> None:
        found: dict[tuple[Guideline, tuple[str, ...]], dict[str, tuple[GoldMention, ...]]] = {}
        for example in examples:
            for start, end, types in outermost(example.mentions):
                inside = tuple(
                    GoldMention(m.start - start, m.end - start, m.type)
                    for m in example.mentions
                    if start <= m.start and m.end <= end
                )
                of_types = found.setdefault(((example.types, example.lang), types), {})
                of_types.setdefault(example.text[start:end], inside)
        self._found = {key: list(mentions.items()) for key, mentions in found.items()}

    def replaced(
        self, text: str, mentions: Sequence[GoldMention], guideline: Guideline, draw: random.Random
    ) -> tuple[str, list[GoldMention]]:
        """A text with half of its outermost mentions replaced, and its mentions at their new places."""
        parts: list[str] = []
        made: list[GoldMention] = []
        moved: list[tuple[int, int]] = []  # from here on, offsets are moved by so much
        gone: list[tuple[int, int]] = []
        at = length = 0
        for start, end, types in outermost(mentions):
            there = self._found.get((guideline, types))
            if there is None or draw.random() >= _SHARE:
                continue
            new, inside = draw.choice(there)
            parts += (text[at:start], new)
            length += start - at
            made += (GoldMention(m.start + length, m.end + length, m.type) for m in inside)
            length += len(new)
            at = end
            moved.append((end, length - end))
            gone.append((start, end))

        def there_now(offset: int) -> int:
            return offset + next((by for begin, by in reversed(moved) if begin <= offset), 0)

        kept = [m for m in mentions if not any(start <= m.start and m.end <= end for start, end in gone)]
        made += (GoldMention(there_now(m.start), there_now(m.end), m.type) for m in kept)
        return "".join((*parts, text[at:])), sorted(made, key=lambda m: (m.start, -m.end, m.type))


def outermost(mentions: Sequence[GoldMention]) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """The spans that no other contains or crosses, in order, with their types, sorted."""
    spans = sorted({(m.start, m.end) for m in mentions})
    for start, end in spans:
        if all(b <= start or end <= a or (start <= a and b <= end) for a, b in spans):
            yield start, end, tuple(sorted({m.type for m in mentions if (m.start, m.end) == (start, end)}))
