"""Parses bracketed text into candidates. Total: any string gives mentions and a count of repairs.

Lines are of scheme ``labelled.v1`` (:mod:`shared.text.tagging`). Those of the constrained engine are copies of the
segment, character for character, once brackets and labels are taken out, so the bracket positions are the offsets. A
free-running model may write anything, so its text is aligned to the segment first (:mod:`services.parsing.alignment`).
The work is bounded for inputs of any length.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

from services.parsing.alignment import MAX_PAIRS, Alignment, Difference, Span, comparable, folded, matches
from services.parsing.labels import LabelReader
from shared.entity_types import TYPES
from shared.messages import Candidate, Parsed, Segment, TaggedLine

Repair = (
    Difference
    | Literal[
        "unbalanced-open",  # an opening bracket that nothing closes; left out
        "unbalanced-close",  # a closing bracket that nothing opens; left out
        "empty-brackets",  # an empty span, or one of only white space; left out
        "whitespace-trimmed",  # a span that began or ended with white space
        "duplicate",  # a duplicate mention; the more confident one stays
        "unescaped-bracket",  # a literal bracket of the segment that was copied without its backslash
        "unescaped-bar",  # a bar without a backslash that begins no label; read as text
        "unaligned",  # a span that cannot be found in the segment; left out
        "extra-lines",  # a further copy, in a line that is not the segment character for character; read as well
        "absent-mark",  # an unexpected ` -`
        "header",  # type names before the text; the type of the following mentions that have no label
        "no-type",  # a mention without a type though several were requested; left out
        "other-type",  # a mention of a type that was not requested; left out
        "unknown-type",  # a mention of a type that is not in the inventory; left out
        "overlong",  # more than any segment of this length can need; the rest was not read
        "logprobs-mismatch",  # not one log-probability per bracket; the confidence is the presence alone
        "alternative-out-of-range",  # an alternative outside the segment; left out
    ]
)
"""Kinds of repair, the keys of ``Parsed.repairs``."""

# The most copies that are aligned to a segment, each with its share of ``MAX_PAIRS``.
MAX_COPIES = 8

_TOKEN = re.compile(r"\\[\\\[\]|]|[\[\]|]|[^\\\[\]|]+|\\")
# The names of all types that can be requested take less.
_HEADER = re.compile(r"\s{0,8}([^\[\]:：\n]{1,2000}?)\s{0,8}[:：]\s{0,8}")


class _Bracket(NamedTuple):
    """An unescaped bracket: how many characters of the text precede it, and its index among the line's brackets."""

    at: int
    opens: bool
    number: int
    label: str | None = None  # of a closing bracket, as written

    def moved(self, at: int) -> _Bracket:
        return self._replace(at=at)


class _Pair(NamedTuple):
    """A span and its two brackets."""

    start: int
    end: int
    opening: _Bracket
    closing: _Bracket


class _Said(NamedTuple):
    """How a mention was written."""

    confidence: float
    greedy: bool


def parse(line: TaggedLine) -> Parsed:
    """The candidates of one line, in text order, and the repairs it took. Never raises."""
    return parse_lines((line,))


def parse_lines(lines: Iterable[TaggedLine]) -> Parsed:
    """The candidates of many lines, segment by segment, each in text order. Never raises.

    Offsets are the document's, and ``candidate.text`` is the segment's own text there. A mention that occurs more than
    once in the lines of a segment is returned once.
    """
    repairs: Counter[str] = Counter()
    groups: dict[Segment, list[TaggedLine]] = {}
    for line in lines:
        groups.setdefault(line.segment, []).append(line)
    candidates: list[Candidate] = []
    repaired: Counter[int] = Counter()
    for segment, group in groups.items():
        before = repairs.total()
        candidates += _candidates(segment, group, repairs)
        repaired[segment.index] += repairs.total() - before
    return Parsed(
        candidates=tuple(candidates),
        repairs={kind: n for kind, n in sorted(repairs.items()) if n},
        repaired={index: n for index, n in sorted(repaired.items()) if n},
    )


def _candidates(segment: Segment, lines: list[TaggedLine], repairs: Counter[str]) -> Iterator[Candidate]:
    """The candidates of all lines of one segment."""
    found: dict[tuple[int, int, str], _Said] = {}
    for line in lines:
        for (start, end), type_, said in _mentions(line, repairs):
            stripped = segment.text[start:end].strip()
            if not stripped:
                repairs["empty-brackets"] += 1
                continue
            if len(stripped) < end - start:
                repairs["whitespace-trimmed"] += 1
                start = segment.text.index(stripped, start)
                end = start + len(stripped)
            known = found.get((start, end, type_))
            if known is not None:
                repairs["duplicate"] += 1
            if known is None or (said.greedy, said.confidence) > (known.greedy, known.confidence):
                found[start, end, type_] = said
    for (start, end, type_), said in sorted(found.items(), key=lambda item: (item[0][0], -item[0][1], item[0][2])):
        yield Candidate(
            segment=segment,
            type=type_,
            start=segment.start + start,
            end=segment.start + end,
            text=segment.text[start:end],
            generator_confidence=said.confidence,
            greedy=said.greedy,
        )


def _mentions(line: TaggedLine, repairs: Counter[str]) -> Iterator[tuple[Span, str, _Said]]:
    """The mentions of one line within its segment, as written: span and type."""
    labels = LabelReader(line.types, line.segment.text)
    said, brackets, escapes = _read(line, labels, repairs)
    logprobs = line.brackets
    if logprobs is not None and len(logprobs) != len(brackets):
        repairs["logprobs-mismatch"] += 1
        logprobs = None
    for start, end, opening, closing in _bracketed(said, brackets, escapes, line, labels, repairs):
        type_ = _type(closing.label, line.types, labels, repairs)
        if type_ is None:
            continue
        confidence = line.presence
        if logprobs is not None:
            confidence *= _probability(logprobs[opening.number]) * _probability(logprobs[closing.number])
        yield (start, end), type_, _Said(min(1.0, max(0.0, confidence)), greedy=True)
    for alternative in line.alternatives:
        start, end = alternative.start, alternative.end
        if not 0 <= start < end <= len(line.segment.text):
            repairs["alternative-out-of-range"] += 1
        elif (type_ := _asked(alternative.type, line.types, repairs)) is not None:
            yield (start, end), type_, _Said(_probability(alternative.logprob), greedy=False)


def _type(label: str | None, types: tuple[str, ...], labels: LabelReader, repairs: Counter[str]) -> str | None:
    """The type that a label means; None if there is none to use."""
    if label is not None and label.strip():
        return _asked(labels.key(label), types, repairs)
    if len(types) == 1:
        return _asked(types[0], types, repairs)
    repairs["no-type"] += 1
    return None


def _asked(key: str | None, types: tuple[str, ...], repairs: Counter[str]) -> str | None:
    """The key, if it was requested and is in the inventory."""
    if key in TYPES and key in types:
        return key
    repairs["other-type" if key in TYPES else "unknown-type"] += 1
    return None


def _probability(logprob: float) -> float:
    """The probability of a natural log-probability; 0 for NaN."""
    return 0.0 if math.isnan(logprob) else math.exp(min(0.0, logprob))


def _read(line: TaggedLine, labels: LabelReader, repairs: Counter[str]) -> tuple[str, list[_Bracket], bool]:
    """The line without brackets and labels, the brackets, and whether the line escapes literal ones."""
    # A text of n characters takes at most 2n when escaped. Three copies with a mention of thirty more characters at
    # every third one take 36n.
    tagged, most = line.tagged, 40 * len(line.segment.text) + 4096
    if len(tagged) > most:
        repairs["overlong"] += 1
        tagged = tagged[:most]
    parts: list[str] = []
    brackets: list[_Bracket] = []
    at, escapes = 0, False
    first = 0  # of the parts since the last bracket
    bar: tuple[int, int] | None = None  # the last unescaped bar among them: its part and position
    for match in _TOKEN.finditer(tagged):
        part = match[0]
        if part in ("[", "]"):
            label = None
            if part == "]" and bar is not None and labels.is_label(said := "".join(parts[bar[0] + 1 :])):
                label = said
                repairs["unescaped-bar"] -= 1
                del parts[bar[0] :]
                at = bar[1]
                if len(parts) > first and parts[-1].endswith(" "):
                    parts[-1] = parts[-1][:-1]
                    at -= 1
            brackets.append(_Bracket(at, part == "[", len(brackets), label))
            first, bar = len(parts), None
            continue
        if part == "|":
            bar = len(parts), at
            repairs["unescaped-bar"] += 1
        elif len(part) == 2 and part[0] == "\\":
            part = part[1]
            escapes = escapes or part in "[]"
        parts.append(part)
        at += len(part)
    return "".join(parts), brackets, escapes


def _bracketed(
    said: str, brackets: list[_Bracket], escapes: bool, line: TaggedLine, labels: LabelReader, repairs: Counter[str]
) -> Iterator[_Pair]:
    """The bracketed spans of a line, mapped to its segment."""
    text = line.segment.text
    if exact := _exact_copies(said, brackets, text):
        for own in exact:
            yield from _pairs(own, repairs)
        return
    copies = list(islice(_copies(said, brackets, text), MAX_COPIES + 1))
    if len(copies) > MAX_COPIES:
        repairs["overlong"] += 1
        copies.pop()
    max_pairs = MAX_PAIRS // len(copies)
    for i, (copy, own) in enumerate(copies):
        if i:
            repairs["extra-lines"] += 1
        copy, own, default = _without_header(copy, own, line, labels, repairs)
        if copy.strip() == "-" and text.strip() != "-":
            repairs["absent-mark"] += 1
            continue
        if not escapes and ("[" in text or "]" in text) and own:
            copy, own = _restore_brackets(copy, own, text, max_pairs, repairs)
        own = [each if each.label is not None else each._replace(label=default) for each in own]
        pairs = list(_pairs(own, repairs))
        if copy == text:
            yield from pairs
        elif copy.strip():
            yield from _carried_over(copy, pairs, text, max_pairs, repairs)


def _pairs(brackets: Iterable[_Bracket], repairs: Counter[str]) -> Iterator[_Pair]:
    """Pairs of brackets, each closing one with the nearest open one, without empty spans."""
    stack: list[_Bracket] = []
    for bracket in brackets:
        if bracket.opens:
            stack.append(bracket)
        elif not stack:
            repairs["unbalanced-close"] += 1
        else:
            opening = stack.pop()
            if opening.at < bracket.at:
                yield _Pair(opening.at, bracket.at, opening, bracket)
            else:
                repairs["empty-brackets"] += 1
    repairs["unbalanced-open"] += len(stack)


def _exact_copies(said: str, brackets: list[_Bracket], text: str) -> list[list[_Bracket]]:
    """The brackets of each copy in a line of exact copies of the text; empty if it is not such a line."""
    size = len(text) + 1  # with the line break between two copies
    copies = (len(said) + 1) // size
    if not copies or said != "\n".join([text] * copies):
        return []
    own: list[list[_Bracket]] = [[] for _ in range(copies)]
    for bracket in brackets:
        copy, at = divmod(bracket.at, size)
        own[copy].append(bracket.moved(at))
    return own


def _copies(said: str, brackets: list[_Bracket], text: str) -> Iterator[tuple[str, list[_Bracket]]]:
    """Splits a line that repeats the segment into copies: each has as many rows as the segment, ignoring blank ones."""
    rows = _rows(said)
    size = max(1, len(_rows(text)))
    if len(rows) <= size:
        yield said, brackets
        return
    places = [bracket.at for bracket in brackets]
    begin = 0
    for i in range(0, len(rows), size):
        start, end = rows[i][0], rows[min(i + size, len(rows)) - 1][1]
        stop = bisect_left(places, rows[i + size][0]) if i + size < len(rows) else len(brackets)
        yield said[start:end], [b.moved(max(start, min(b.at, end)) - start) for b in brackets[begin:stop]]
        begin = stop


def _rows(text: str) -> list[Span]:
    """Start and end of each non-blank line of a text."""
    rows: list[Span] = []
    at = 0
    for row in text.split("\n"):
        if row.strip():
            rows.append((at, at + len(row)))
        at += len(row) + 1
    return rows


def _without_header(
    copy: str, brackets: list[_Bracket], line: TaggedLine, labels: LabelReader, repairs: Counter[str]
) -> tuple[str, list[_Bracket], str | None]:
    """The copy without leading type names and a colon; the name, if there is just one, for mentions without a label."""
    text = line.segment.text
    match = _HEADER.match(copy)
    if match is None or folded(text).startswith(folded(match[0])):
        return copy, brackets, None
    rest = copy[match.end() :]
    names = labels.names_in(match[1])
    if not names:
        beginning = folded(rest[:64])[:8]
        if not beginning or not folded(text[:64]).startswith(beginning):
            return copy, brackets, None  # a colon of the text itself
        names = [match[1]]
    repairs["header"] += 1
    own = [bracket.moved(max(0, bracket.at - match.end())) for bracket in brackets]
    return rest, own, names[0] if len(names) == 1 else None


def _restore_brackets(
    copy: str, brackets: list[_Bracket], text: str, max_pairs: int, repairs: Counter[str]
) -> tuple[str, list[_Bracket]]:
    """Turns brackets into text where the segment has literal ones."""
    parts: list[str] = []
    places: list[int] = []  # indices of the brackets in the copy, brackets included
    done = 0
    for i, bracket in enumerate(brackets):
        parts += (copy[done : bracket.at], "[" if bracket.opens else "]")
        places.append(bracket.at + i)
        done = bracket.at
    parts.append(copy[done:])
    whole = "".join(parts)
    keys, sources = comparable(whole)
    aligned = matches(keys, folded(text), max_pairs)
    literal = {sources[i] for i, to in enumerate(aligned) if to >= 0}.intersection(places)
    # Of several brackets in a row, the outer ones belong to the text: `[[CD28]]` is a mention in literal brackets.
    for run in re.finditer(r"\[{2,}|\]{2,}", whole):
        row = range(*run.span())
        n = len(literal.intersection(row))
        literal.difference_update(row)
        literal.update(row[:n] if run[0][0] == "[" else row[len(row) - n :])
    literal -= _labelled(brackets, places, literal)
    repairs["unescaped-bracket"] += len(literal)
    kept: list[_Bracket] = []
    dropped: set[int] = set()
    for place, bracket in zip(places, brackets, strict=True):
        if place not in literal:
            kept.append(bracket.moved(place - len(dropped)))
            dropped.add(place)
    return "".join(char for i, char in enumerate(whole) if i not in dropped), kept


def _labelled(brackets: list[_Bracket], places: list[int], literal: set[int]) -> set[int]:
    """The positions of labelled closing brackets, which are not text, and of those taken for text that open them."""
    found: set[int] = set()
    marks: list[int] = []  # open ones
    literals: list[int] = []  # open ones taken for text
    for place, bracket in zip(places, brackets, strict=True):
        if bracket.opens:
            (literals if place in literal else marks).append(place)
        elif bracket.label is not None:
            found.add(place)
            if marks:
                marks.pop()
            elif literals:
                found.add(literals.pop())
        elif place in literal:
            if literals:
                literals.pop()
        elif marks:
            marks.pop()
    return found


def _carried_over(copy: str, pairs: list[_Pair], text: str, max_pairs: int, repairs: Counter[str]) -> Iterator[_Pair]:
    """Spans of a copy that differs from the segment, mapped to the segment."""
    alignment = Alignment(copy, text, max_pairs)
    repairs.update(alignment.differences())
    for pair in sorted(pairs, key=lambda pair: (pair.start, -pair.end)):
        span = alignment.span(pair.start, pair.end)
        if span is not None:
            yield _Pair(*span, pair.opening, pair.closing)
        else:
            repairs["unaligned" if alignment.holds(pair.start, pair.end) else "empty-brackets"] += 1
