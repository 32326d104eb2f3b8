"""Counts the words of corpora for a gazetteer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from shared.selection.gazetteer import Gazetteer, WordCounts, normal
from shared.text.pieces import split
from training.data.corpora import Example

MOST_PIECES = 14  # longest words counted that are never a mention
LEAST = 3  # occurrences below which they are dropped


def count(corpora: Mapping[str, Sequence[Example]]) -> Gazetteer:
    """The gazetteer of the corpora, which are given by name."""
    mentions: dict[str, Counter[str]] = {}
    words: dict[str, WordCounts] = {}
    types: dict[str, tuple[str, ...]] = {}
    for name, examples in corpora.items():
        types[name] = tuple(sorted({type_ for example in examples for type_ in example.types}))
        own: dict[str, Counter[str]] = {type_: Counter() for type_ in types[name]}
        for example in examples:
            for start, end, type_ in {(m.start, m.end, m.type) for m in example.mentions}:
                own[type_][normal(example.text[start:end])] += 1
        texts = [_normal_pieces(example.text) for example in examples]
        words[name] = WordCounts.of(_words(texts, {words for counted in own.values() for words in counted}))
        for type_, counted in own.items():
            mentions.setdefault(type_, Counter()).update(counted)
    return Gazetteer(types, {type_: WordCounts.of(counted) for type_, counted in mentions.items()}, words)


def _normal_pieces(text: str) -> list[str]:
    pieces = split(text)
    return [normal(text[start:end]) for start, end in zip(pieces.cores, pieces.ends, strict=True)]


def _words(texts: Sequence[Sequence[str]], mentions: Iterable[str]) -> Counter[str]:
    """Counts of all n-grams of up to ``MOST_PIECES`` pieces that occur at least ``LEAST`` times or are a mention.

    Level by level (Apriori, Agrawal and Srikant 1994): an n-gram is only counted if both of its parts are frequent, so
    rare ones never take memory.
    """
    found: Counter[str] = Counter()
    wanted = set(mentions)
    frequent: set[str] = set()
    for length in range(1, MOST_PIECES + 1):
        counted: Counter[str] = Counter()
        for text in texts:
            for begin in range(len(text) - length + 1):
                words = "".join(text[begin : begin + length])
                if (
                    words in wanted
                    or length == 1
                    or (
                        "".join(text[begin : begin + length - 1]) in frequent
                        and "".join(text[begin + 1 : begin + length]) in frequent
                    )
                ):
                    counted[words] += 1
        frequent = {words for words, count in counted.items() if count >= LEAST}
        found.update({words: count for words, count in counted.items() if count >= LEAST or words in wanted})
    return found
