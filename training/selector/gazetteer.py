"""Counts the words of corpora for a gazetteer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from shared.selection.gazetteer import Counts, Gazetteer, normal
from shared.text.pieces import split
from training.data.corpora import Example

MOST_PIECES = 14  # in words that are counted though they are never a mention
LEAST = 3  # how often they must come up


def count(corpora: Mapping[str, Sequence[Example]]) -> Gazetteer:
    """Of the mentions and words of corpora, by name."""
    mentions: dict[str, Counter[str]] = {}
    words: dict[str, Counts] = {}
    types: dict[str, tuple[str, ...]] = {}
    for name, examples in corpora.items():
        types[name] = tuple(sorted({type_ for example in examples for type_ in example.types}))
        own: dict[str, Counter[str]] = {type_: Counter() for type_ in types[name]}
        for example in examples:
            for start, end, type_ in {(m.start, m.end, m.type) for m in example.mentions}:
                own[type_][normal(example.text[start:end])] += 1
        texts = [_normal_pieces(example.text) for example in examples]
        words[name] = Counts.of(_words(texts, {words for of in own.values() for words in of}))
        for type_, of in own.items():
            mentions.setdefault(type_, Counter()).update(of)
    return Gazetteer(types, {type_: Counts.of(of) for type_, of in mentions.items()}, words)


def _normal_pieces(text: str) -> list[str]:
    pieces = split(text)
    return [normal(text[start:end]) for start, end in zip(pieces.cores, pieces.ends, strict=True)]


def _words(texts: Sequence[Sequence[str]], mentions: Iterable[str]) -> Counter[str]:
    """How often all words of up to ``MOST_PIECES`` come up, of those that do so ``LEAST`` times or are a mention.

    Longer ones are made of shorter ones that are frequent enough (Agrawal and Srikant 1994): what is rare is dropped
    before it takes memory.
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
