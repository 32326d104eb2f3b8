"""Bracketed text to candidates: total, so that any string in gives spans and a count of repairs out.

What the constrained engine writes takes the first way: without its brackets the line is the segment, letter by letter,
and the bracket positions are the offsets. What a free-running model says may differ in any way, so its text is aligned
to the segment first: characters are compared by their compatibility form in one case and without white space
(:func:`_keys`), a longest-block alignment (Ratcliff and Obershelp, as in :mod:`difflib`) carries every bracketed span
over, and a span whose alignment is too thin is looked up literally. The work is bounded whatever the length.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

from shared.entity_types import TYPES
from shared.messages import Candidate, Parsed, Segment, TaggedLine

# Kinds of repair, the keys of ``Parsed.repairs``.
Repair = Literal[
    "unbalanced-open",  # an opening bracket that nothing closes; left out
    "unbalanced-close",  # a closing bracket that nothing opens; left out
    "empty-brackets",  # a span of nothing or of white space alone; left out
    "whitespace-trimmed",  # a span that began or ended in white space
    "duplicate",  # one span said more than once; the more confident stays
    "unescaped-bracket",  # a literal bracket of the segment that was copied without its backslash
    "whitespace-changed",  # the text differs from the segment in white space alone
    "characters-normalised",  # the text differs in case, width or other compatibility form alone
    "text-changed",  # words differ, are missing or are new
    "truncated",  # the text stops before the segment does
    "unaligned",  # a span that is not found in the segment; left out
    "extra-lines",  # a further copy of the segment; read as well
    "absent-mark",  # ` -` where there should have been nothing
    "label",  # the type's own name before the text
    "other-type",  # a copy labelled with another type of the inventory; its spans are left out
    "unknown-type",  # a span of a type that the inventory does not have; left out
    "overlong",  # more than any segment of this length can need; the rest was not read
    "logprobs-mismatch",  # not one log-probability a bracket; the presence alone is the confidence
    "alternative-out-of-range",  # an alternative that lies outside of the segment; left out
]

# Pairs of equal characters that one alignment may look at, about half a second of work; its time grows with them. Two
# English texts of 700 characters, the longest segments, have 30,000, and an alignment looks at them a few times.
MAX_PAIRS = 3_000_000
# What the alignment does not place is looked up literally: so many spans of a line, none longer than so many
# characters, at so many places each.
MAX_SEARCHES = 200
MAX_WANTED = 500
MAX_PLACES = 16
# Characters by which a span grows at most to end with its word.
MAX_WORD = 32
# A span of n characters may lie on m characters of the segment where twice the matches is at least this share of n + m.
# 0.6 keeps `beta-catenin` on `β-catenin` and refuses an abbreviation on the letters of its long form.
MIN_OVERLAP = 0.6

_TOKEN = re.compile(r"\\[\\\[\]]|[\[\]]|[^\\\[\]]+|\\")
_LABEL = re.compile(r"\s{0,8}([^\[\]:：\n]{1,60}?)\s{0,8}[:：]\s{0,8}")
_PUNCTUATION = str.maketrans("。‘’“”‐‑‒–—−", "." + "''" + '""' + "------")

Span = tuple[int, int]


class _Mark(NamedTuple):
    """An unescaped bracket: how many characters of the text stand before it, and its place in the line's brackets."""

    at: int
    opens: bool
    number: int


class _Found(NamedTuple):
    confidence: float
    greedy: bool


def parse(line: TaggedLine) -> Parsed:
    """The candidates of one line, in text order, and the repairs it took. Never raises."""
    return parse_lines((line,))


def parse_lines(lines: Iterable[TaggedLine]) -> Parsed:
    """The candidates of many lines, line by line, each in text order. Never raises.

    Offsets are the document's, and ``candidate.text`` is the segment's own text there. Spans that several lines of one
    segment and type repeat (crossing spans need a second line) come out once.
    """
    repairs: Counter[str] = Counter()
    groups: dict[tuple[Segment, str], list[TaggedLine]] = {}
    for line in lines:
        groups.setdefault((line.segment, line.type), []).append(line)
    candidates: list[Candidate] = []
    repaired: Counter[int] = Counter()
    for (segment, _), group in groups.items():
        before = repairs.total()
        candidates += _candidates(group, repairs)
        repaired[segment.index] += repairs.total() - before
    return Parsed(
        candidates=tuple(candidates),
        repairs={kind: n for kind, n in sorted(repairs.items()) if n},
        repaired={index: n for index, n in sorted(repaired.items()) if n},
    )


def _candidates(lines: list[TaggedLine], repairs: Counter[str]) -> Iterator[Candidate]:
    """The candidates of all lines of one segment and type."""
    segment, type_ = lines[0].segment, lines[0].type
    found: dict[Span, _Found] = {}
    for line in lines:
        for (start, end), said in _spans(line, repairs):
            stripped = segment.text[start:end].strip()
            if not stripped:
                repairs["empty-brackets"] += 1
                continue
            if len(stripped) < end - start:
                repairs["whitespace-trimmed"] += 1
                start = segment.text.index(stripped, start)
                end = start + len(stripped)
            known = found.get((start, end))
            if known is not None:
                repairs["duplicate"] += 1
            if known is None or (said.greedy, said.confidence) > (known.greedy, known.confidence):
                found[start, end] = said
    if type_ not in TYPES:
        repairs["unknown-type"] += len(found)
        return
    for (start, end), said in sorted(found.items(), key=lambda item: (item[0][0], -item[0][1])):
        yield Candidate(
            segment=segment,
            type=type_,
            start=segment.start + start,
            end=segment.start + end,
            text=segment.text[start:end],
            generator_confidence=said.confidence,
            greedy=said.greedy,
        )


def _spans(line: TaggedLine, repairs: Counter[str]) -> Iterator[tuple[Span, _Found]]:
    """Spans of one line within its segment, as they were said."""
    said, marks, escapes = _read(line.tagged, line.segment.text, repairs)
    logprobs = line.brackets
    if logprobs is not None and len(logprobs) != len(marks):
        repairs["logprobs-mismatch"] += 1
        logprobs = None
    for span, opening, closing in _bracketed(said, marks, escapes, line, repairs):
        confidence = line.presence
        if logprobs is not None:
            confidence *= _probability(logprobs[opening.number]) * _probability(logprobs[closing.number])
        yield span, _Found(min(1.0, max(0.0, confidence)), greedy=True)
    for alternative in line.alternatives:
        if 0 <= alternative.start < alternative.end <= len(line.segment.text):
            yield (
                (alternative.start, alternative.end),
                _Found(_probability(alternative.logprob), greedy=False),
            )
        else:
            repairs["alternative-out-of-range"] += 1


def _probability(logprob: float) -> float:
    """The probability of a natural log-probability; 0 for what is none."""
    return 0.0 if math.isnan(logprob) else math.exp(min(0.0, logprob))


def _read(tagged: str, text: str, repairs: Counter[str]) -> tuple[str, list[_Mark], bool]:
    """The line without its brackets, the brackets, and whether it escapes literal ones."""
    # A text of n characters takes at most 2n when escaped, and at most 2n - 1 nested spans take 4n - 2 brackets.
    most = 8 * len(text) + 1024
    if len(tagged) > most:
        repairs["overlong"] += 1
        tagged = tagged[:most]
    parts: list[str] = []
    marks: list[_Mark] = []
    at, escapes = 0, False
    for match in _TOKEN.finditer(tagged):
        part = match[0]
        if part in ("[", "]"):
            marks.append(_Mark(at, part == "[", len(marks)))
            continue
        if part in (r"\[", r"\]", r"\\"):
            escapes = escapes or part != r"\\"
            part = part[1]
        parts.append(part)
        at += len(part)
    return "".join(parts), marks, escapes


def _bracketed(
    said: str, marks: list[_Mark], escapes: bool, line: TaggedLine, repairs: Counter[str]
) -> Iterator[tuple[Span, _Mark, _Mark]]:
    """The bracketed spans of a line, carried over to its segment, each with its two brackets."""
    text = line.segment.text
    if said == text:
        yield from _pairs(marks, repairs)
        return
    for i, (copy, own) in enumerate(_copies(said, marks, text)):
        if i:
            repairs["extra-lines"] += 1
        copy, own = _without_label(copy, own, line, repairs)
        if copy.strip() == "-" and text.strip() != "-":
            repairs["absent-mark"] += 1
            continue
        if not escapes and ("[" in text or "]" in text) and own:
            copy, own = _restore_brackets(copy, own, text, repairs)
        pairs = list(_pairs(own, repairs))
        if copy == text:
            yield from pairs
        elif copy.strip():
            yield from _carry(copy, pairs, text, repairs)


def _pairs(marks: Iterable[_Mark], repairs: Counter[str]) -> Iterator[tuple[Span, _Mark, _Mark]]:
    """Brackets in pairs, each closing one with the nearest open one; spans of nothing left out."""
    stack: list[_Mark] = []
    for mark in marks:
        if mark.opens:
            stack.append(mark)
        elif not stack:
            repairs["unbalanced-close"] += 1
        else:
            opening = stack.pop()
            if opening.at < mark.at:
                yield (opening.at, mark.at), opening, mark
            else:
                repairs["empty-brackets"] += 1
    repairs["unbalanced-open"] += len(stack)


def _copies(said: str, marks: list[_Mark], text: str) -> Iterator[tuple[str, list[_Mark]]]:
    """A line that repeats the segment, copy by copy: as many rows each as the segment has, blank ones not counted."""
    rows = _rows(said)
    size = max(1, len(_rows(text)))
    if len(rows) <= size:
        yield said, marks
        return
    places = [mark.at for mark in marks]
    begin = 0
    for i in range(0, len(rows), size):
        start, end = rows[i][0], rows[min(i + size, len(rows)) - 1][1]
        stop = bisect_left(places, rows[i + size][0]) if i + size < len(rows) else len(marks)
        own = marks[begin:stop]
        yield said[start:end], [_Mark(max(start, min(m.at, end)) - start, m.opens, m.number) for m in own]
        begin = stop


def _rows(text: str) -> list[Span]:
    """Where the lines of a text that are not blank begin and end."""
    rows: list[Span] = []
    at = 0
    for row in text.split("\n"):
        if row.strip():
            rows.append((at, at + len(row)))
        at += len(row) + 1
    return rows


def _without_label(copy: str, marks: list[_Mark], line: TaggedLine, repairs: Counter[str]) -> tuple[str, list[_Mark]]:
    """The copy without a leading ``Type:``; without its brackets too where that is another type."""
    text = line.segment.text
    match = _LABEL.match(copy)
    if match is None or _folded(text).startswith(_folded(match[0])):
        return copy, marks
    name = _folded(match[1])
    rest = copy[match.end() :]
    if name in _names():
        own = _names()[name] == line.type
        kind: Repair = "label" if own else "other-type"
    else:
        beginning = _keys(rest[:64])[0][:8]
        if not beginning or not _keys(text[:64])[0].startswith(beginning):
            return copy, marks  # a colon of the text itself
        own, kind = name == _folded(line.type), "unknown-type"
    if own or not marks:
        repairs["label"] += 1
    else:
        repairs[kind] += sum(mark.opens for mark in marks) if kind == "unknown-type" else 1
    kept = marks if own else []
    return rest, [_Mark(max(0, mark.at - match.end()), mark.opens, mark.number) for mark in kept]


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Folded names and keys of all types, with their keys."""
    return {_folded(name): key for key, type_ in TYPES.items() for name in (key, type_.en, type_.zh)}


def _restore_brackets(copy: str, marks: list[_Mark], text: str, repairs: Counter[str]) -> tuple[str, list[_Mark]]:
    """Brackets that stand where the segment has literal ones become text."""
    parts: list[str] = []
    places: list[int] = []  # of the marks, in the copy with its brackets
    done = 0
    for i, mark in enumerate(marks):
        parts += (copy[done : mark.at], "[" if mark.opens else "]")
        places.append(mark.at + i)
        done = mark.at
    parts.append(copy[done:])
    whole = "".join(parts)
    keys, sources = _keys(whole)
    aligned = _align(keys, _keys(text)[0])
    copied = {sources[i] for i, to in enumerate(aligned) if to >= 0}.intersection(places)
    repairs["unescaped-bracket"] += len(copied)
    # Of several brackets in a row the outer ones are the text's: `[[CD28]]` is a mention in literal brackets.
    for run in re.finditer(r"\[{2,}|\]{2,}", whole):
        row = range(*run.span())
        n = len(copied.intersection(row))
        copied = copied.difference(row).union(row[:n] if run[0][0] == "[" else row[len(row) - n :])
    kept: list[_Mark] = []
    dropped: set[int] = set()
    for place, mark in zip(places, marks, strict=True):
        if place not in copied:
            kept.append(_Mark(place - len(dropped), mark.opens, mark.number))
            dropped.add(place)
    return "".join(char for i, char in enumerate(whole) if i not in dropped), kept


def _carry(
    copy: str, pairs: list[tuple[Span, _Mark, _Mark]], text: str, repairs: Counter[str]
) -> Iterator[tuple[Span, _Mark, _Mark]]:
    """Spans of a copy that differs from the segment, as spans of the segment."""
    said, sources = _keys(copy)
    meant, targets = _keys(text)
    aligned = _align(said, meant)
    _report(copy, text, said, meant, aligned, repairs)
    if not pairs:
        return
    alignment = _Alignment(aligned, len(meant))
    searches = cursor = 0
    for (start, end), opening, closing in sorted(pairs, key=lambda pair: (pair[0][0], -pair[0][1])):
        a, b = bisect_left(sources, start), bisect_left(sources, end)
        placed = alignment.place(a, b)
        if placed is None and a < b <= a + MAX_WANTED and searches < MAX_SEARCHES:
            searches += 1
            placed = _search(said[a:b], meant, targets, text, cursor)
        if placed is None:
            repairs["unaligned" if a < b else "empty-brackets"] += 1
            continue
        cursor = placed[0]
        first, last = targets[placed[0]], targets[placed[1] - 1] + 1
        # A word's end that the model did not copy (`receptor` for `receptors`) still belongs to the mention.
        if not _in_word(copy, start):
            first = _word_edge(text, first, -1)
        if not _in_word(copy, end):
            last = _word_edge(text, last, 1)
        yield (first, last), opening, closing


def _report(copy: str, text: str, said: str, meant: str, aligned: list[int], repairs: Counter[str]) -> None:
    """Counts in what way a copy differs from its segment."""
    if said == meant:
        same = "".join(copy.split()) == "".join(text.split())
        repairs["whitespace-changed" if same else "characters-normalised"] += 1
    elif said and meant.startswith(said):
        repairs["truncated"] += 1
    else:
        repairs["text-changed"] += 1
        # Faithful up to a place well before the end, and nothing said after it.
        if aligned and 0 <= aligned[-1] < len(meant) - 1:
            matched = sum(to >= 0 for to in aligned)
            repairs["truncated"] += matched >= 0.8 * (aligned[-1] + 1)


class _Alignment:
    """Which key of the segment each key of the copy matches (-1: none), ready for spans."""

    def __init__(self, to: list[int], length: int) -> None:
        self.to = to
        self.length = length
        self.matched = [i for i, target in enumerate(to) if target >= 0]
        self.before = list(accumulate((target >= 0 for target in to), initial=0))

    def place(self, a: int, b: int) -> Span | None:
        """The segment's keys of the copy's keys ``a`` to ``b``; none where too few match."""
        hits = self.before[b] - self.before[a]
        if not hits:
            return None
        left, right = self.matched[self.before[a]], self.matched[self.before[b] - 1]
        first, last = self.to[left], self.to[right] + 1
        # Keys that were replaced just inside a bracket (`beta` for `β`) stand for what is unmatched there.
        if left > a and (a == 0 or self.to[a - 1] >= 0):
            edge = self.to[a - 1] + 1 if a else 0
            first = edge if first - edge <= 2 * (left - a) + 2 else first
        if right < b - 1 and (b == len(self.to) or self.to[b] >= 0):
            edge = self.to[b] if b < len(self.to) else self.length
            last = edge if edge - last <= 2 * (b - 1 - right) + 2 else last
        return (first, last) if 2 * hits >= MIN_OVERLAP * (b - a + last - first) else None


def _search(wanted: str, meant: str, targets: list[int], text: str, cursor: int) -> Span | None:
    """The first place of the keys at or after the cursor, else anywhere, that cuts no word."""
    for at in (cursor, 0):
        for _ in range(MAX_PLACES):
            at = meant.find(wanted, at)
            if at < 0:
                break
            end = at + len(wanted)
            if not _in_word(text, targets[at]) and not _in_word(text, targets[end - 1] + 1):
                return at, end
            at += 1
    return None


def _in_word(text: str, at: int) -> bool:
    """Whether a place lies inside a run of letters or of digits of a script that has words."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    return before.isalnum() and after.isalnum() and before.isalpha() == after.isalpha() and max(before, after) < "⺀"


def _word_edge(text: str, at: int, step: int) -> int:
    """The edge of the word that a place lies in; the place itself where the edge is far."""
    for to in range(at, at + step * MAX_WORD, step):
        if not _in_word(text, to):
            return to
    return at


def _align(said: str, meant: str) -> list[int]:
    """For each character of the one string its match in the other, or -1.

    The longest common block first, then what lies left and right of it, as :mod:`difflib` does, but widest stretches
    first and only as far as ``MAX_PAIRS`` allows: repetitive texts would take cubic time.
    """
    if said == meant:
        return list(range(len(said)))
    to = [-1] * len(said)
    counts = Counter(meant)
    pairs = list(accumulate((counts[key] for key in said), initial=0))
    matcher = SequenceMatcher(None, said, meant, autojunk=False)
    stretches = deque([(0, len(said), 0, len(meant))])
    left = MAX_PAIRS
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


def _keys(text: str) -> tuple[str, list[int]]:
    """What two texts are compared by, and the character each key comes from: no white space, one case, one width."""
    keys: list[str] = []
    sources: list[int] = []
    for i, char in enumerate(text):
        key = _key(char)
        keys.append(key)
        sources += [i] * len(key)
    return "".join(keys), sources


@lru_cache(maxsize=8192)
def _key(char: str) -> str:
    if char.isspace() or unicodedata.category(char) in ("Cf", "Cc"):
        return ""
    folded = unicodedata.normalize("NFKD", char).casefold().translate(_PUNCTUATION)
    return "".join(folded.split())


def _folded(text: str) -> str:
    return _keys(text)[0]
