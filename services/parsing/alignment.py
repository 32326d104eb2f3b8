"""Maps spans of a copy that differs from its text to the text.

Characters are compared by their compatibility form, in one case and without white space (:func:`comparable`). A
longest-block alignment (Ratcliff and Obershelp, as in :mod:`difflib`) carries a span over; where it matches too
little, the span is looked up literally. The work is bounded whatever the lengths.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import accumulate
from typing import Literal

Difference = Literal[
    "whitespace-changed",  # the text differs from the segment only in white space
    "characters-normalised",  # the text differs only in case, width or other compatibility form
    "text-changed",  # words differ, are missing or are new
    "truncated",  # the text stops before the segment does
]
"""How a copy differs from its text."""

# Pairs of equal characters that the alignments of a line may examine, about half a second of work; time grows with
# their number. Two English texts of 700 characters, the longest segments, have 30,000, and an alignment looks at them a
# few times.
MAX_PAIRS = 3_000_000
# Limits of the literal lookup for spans that the alignment does not place: number of spans per copy, characters per
# span, and places tried for each.
MAX_SEARCHES = 200
MAX_WANTED = 500
MAX_PLACES = 16
# The most characters by which a span grows to end with its word.
MAX_WORD = 32
# A span of n characters may lie on m characters of the text where twice the matches is at least this share of n + m.
# 0.6 keeps `beta-catenin` on `β-catenin` and refuses an abbreviation on the letters of its long form.
MIN_OVERLAP = 0.6

_PUNCTUATION = str.maketrans("。‘’“”‐‑‒–—−", "." + "''" + '""' + "------")

Span = tuple[int, int]


class Alignment:
    """A copy aligned to its text. Spans are half-open character ranges."""

    def __init__(self, copy: str, text: str, max_pairs: int = MAX_PAIRS) -> None:
        self._copy, self._text = copy, text
        self._said, self._sources = comparable(copy)
        self._meant, self._targets = comparable(text)
        self._to = matches(self._said, self._meant, max_pairs)
        self._matched = [i for i, target in enumerate(self._to) if target >= 0]
        self._matched_before = list(accumulate((target >= 0 for target in self._to), initial=0))
        self._searches = 0
        self._cursor = 0

    def differences(self) -> Iterator[Difference]:
        """How the copy differs from the text."""
        said, meant = self._said, self._meant
        if said == meant:
            same = "".join(self._copy.split()) == "".join(self._text.split())
            yield "whitespace-changed" if same else "characters-normalised"
        elif said and meant.startswith(said):
            yield "truncated"
        else:
            yield "text-changed"
            # Faithful up to a point well before the end, with nothing after it.
            last = self._to[-1] if self._to else -1
            if 0 <= last < len(meant) - 1 and len(self._matched) >= 0.8 * (last + 1):
                yield "truncated"

    def span(self, start: int, end: int) -> Span | None:
        """Where a span of the copy lies in the text, or None. Call it in order of span starts.

        A literal lookup searches from the last span found onwards first.
        """
        a, b = bisect_left(self._sources, start), bisect_left(self._sources, end)
        placed = self._place(a, b)
        if placed is None and a < b <= a + MAX_WANTED and self._searches < MAX_SEARCHES:
            self._searches += 1
            placed = self._search(self._said[a:b])
        if placed is None:
            return None
        self._cursor = placed[0]
        first, last = self._targets[placed[0]], self._targets[placed[1] - 1] + 1
        # A word's end that the copy lacks (`receptor` for `receptors`) still belongs to the mention.
        if not in_word(self._copy, start):
            first = _word_edge(self._text, first, -1)
        if not in_word(self._copy, end):
            last = _word_edge(self._text, last, 1)
        return first, last

    def holds(self, start: int, end: int) -> bool:
        """Whether a span of the copy has anything to compare."""
        return bisect_left(self._sources, start) < bisect_left(self._sources, end)

    def _place(self, a: int, b: int) -> Span | None:
        """The text's keys for the copy's keys ``a`` to ``b``; None if too few match."""
        hits = self._matched_before[b] - self._matched_before[a]
        if not hits:
            return None
        to = self._to
        left, right = self._matched[self._matched_before[a]], self._matched[self._matched_before[b] - 1]
        first, last = to[left], to[right] + 1
        # Keys that were replaced just inside a bracket (`beta` for `β`) stand for what is unmatched there.
        if left > a and (a == 0 or to[a - 1] >= 0):
            edge = to[a - 1] + 1 if a else 0
            first = edge if first - edge <= 2 * (left - a) + 2 else first
        if right < b - 1 and (b == len(to) or to[b] >= 0):
            edge = to[b] if b < len(to) else len(self._meant)
            last = edge if edge - last <= 2 * (b - 1 - right) + 2 else last
        return (first, last) if 2 * hits >= MIN_OVERLAP * (b - a + last - first) else None

    def _search(self, wanted: str) -> Span | None:
        """The first occurrence of the keys at or after the cursor, else anywhere, that does not cut a word."""
        for at in (self._cursor, 0):
            for _ in range(MAX_PLACES):
                at = self._meant.find(wanted, at)
                if at < 0:
                    break
                end = at + len(wanted)
                if not in_word(self._text, self._targets[at]) and not in_word(self._text, self._targets[end - 1] + 1):
                    return at, end
                at += 1
        return None


def matches(said: str, meant: str, max_pairs: int = MAX_PAIRS) -> list[int]:
    """For each character of ``said`` the index of its match in ``meant``, or -1; the indices rise.

    The longest common block first, then what lies left and right of it, as :mod:`difflib` does, but widest stretches
    first and only as far as ``max_pairs`` allows: repetitive texts would take cubic time.
    """
    if said == meant:
        return list(range(len(said)))
    to = [-1] * len(said)
    counts = Counter(meant)
    pairs = list(accumulate((counts[key] for key in said), initial=0))
    matcher = SequenceMatcher(None, said, meant, autojunk=False)
    stretches = deque([(0, len(said), 0, len(meant))])
    left = max_pairs
    while stretches:
        a, b, c, d = stretches.popleft()
        left -= pairs[b] - pairs[a]
        if left < 0:
            break
        i, j, n = matcher.find_longest_match(a, b, c, d)
        if n:
            to[i : i + n] = range(j, j + n)
            if a < i and c < j:
                stretches.append((a, i, c, j))
            if i + n < b and j + n < d:
                stretches.append((i + n, b, j + n, d))
    return to


def comparable(text: str) -> tuple[str, list[int]]:
    """The keys by which texts are compared (no white space, case and width folded), each with its index in the text."""
    keys: list[str] = []
    sources: list[int] = []
    for i, char in enumerate(text):
        key = _key(char)
        keys.append(key)
        sources += [i] * len(key)
    return "".join(keys), sources


def folded(text: str) -> str:
    """The keys of a text alone."""
    return "".join(map(_key, text))


@lru_cache(maxsize=8192)
def _key(char: str) -> str:
    if char.isspace() or unicodedata.category(char) in ("Cf", "Cc"):
        return ""
    key = unicodedata.normalize("NFKD", char).casefold().translate(_PUNCTUATION)
    return "".join(key.split())


def in_word(text: str, at: int) -> bool:
    """Whether a place lies inside a run of letters or of digits of a script that separates words by spaces."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    return before.isalnum() and after.isalnum() and before.isalpha() == after.isalpha() and max(before, after) < "⺀"


def _word_edge(text: str, at: int, step: int) -> int:
    """The edge of the word around a place; the place itself if the edge is too far away."""
    for to in range(at, at + step * MAX_WORD, step):
        if not in_word(text, to):
            return to
    return at
