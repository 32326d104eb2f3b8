"""Decoded lines of a type: what was decided at each step, and the message that the lines of a segment make."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared import entity_types
from shared.messages import Alternative, Segment, TaggedLine
from shared.text.per_type import Action, State
from shared.text.pieces import Pieces
from shared.text.tagging import decode, encode

Range = tuple[int, int]  # of pieces
_MARKS = re.compile(r"\\[\[\]\\|]|[\[\]]")


@dataclass(slots=True)
class TypeLineStep:
    """A settled action, with the log-probability of each admissible one at its decision (none: nothing to decide)."""

    action: Action
    logprobs: dict[Action, float] | None


class TypeLineStart(NamedTuple):
    """How a line begins."""

    presence: float  # probability that the type is there at all
    forced: bool  # the type is absent, but had enough of a chance that the line is decoded all the same
    first: TypeLineStep


class PassedOver(NamedTuple):
    """An action that was not taken. ``at``: index of the step in whose place it would stand; ``state``: before it."""

    at: int
    state: State
    action: Action
    logprob: float  # for a closing that of its opening included


def begun(decided: Mapping[Action, float], floor: float) -> TypeLineStart:
    """The first action from the log-probabilities of the admissible ones. ``floor``: see ``candidate_floor``."""
    presence = 1.0 - math.exp(decided[Action.ABSENT]) if Action.ABSENT in decided else 1.0
    best = max(decided, key=decided.__getitem__)
    forced = best is Action.ABSENT and len(decided) > 1 and presence >= floor
    if best is Action.ABSENT and not forced:
        return TypeLineStart(presence, False, TypeLineStep(best, dict(decided)))
    rest: dict[Action, float] = {a: p for a, p in decided.items() if a is not Action.ABSENT}
    norm = math.log(sum(math.exp(p) for p in rest.values()) or 1e-300)
    rest = {a: p - norm for a, p in rest.items()}  # given that the type is there
    return TypeLineStart(presence, forced, TypeLineStep(max(rest, key=rest.__getitem__), rest))


def spans(pieces: int, steps: Iterable[TypeLineStep]) -> dict[Range, tuple[float, float]]:
    """The line's mentions as piece ranges, with the log-probabilities of their two brackets.

    Of a mention that is said twice those of the likelier pair.
    """
    state = State(pieces)
    opened: list[float] = []
    out: dict[Range, tuple[float, float]] = {}
    for step in steps:
        logprob = 0.0 if step.logprobs is None else step.logprobs[step.action]
        if step.action is Action.OPEN:
            opened.append(logprob)
        if (span := state.apply(step.action)) is not None:
            both = (opened.pop(), logprob)
            out[span] = max(out.get(span, both), both, key=sum)
    return out


def passed_over(pieces: int, steps: Iterable[TypeLineStep], floor: float) -> Iterator[PassedOver]:
    """The brackets that were not taken but had a log-probability of at least ``floor``."""
    state = State(pieces)
    opened: list[float] = []
    for index, step in enumerate(steps):
        for action, logprob in (step.logprobs or {}).items():
            if action is step.action or logprob < floor:
                continue
            if action is Action.CLOSE:
                yield PassedOver(index, state, action, opened[-1] + logprob)
            elif action is Action.OPEN:
                yield PassedOver(index, state, action, logprob)
        if step.action is Action.OPEN:
            opened.append((step.logprobs or {}).get(Action.OPEN, 0.0))
        elif step.action is Action.CLOSE:
            opened.pop()
        state.apply(step.action)


class TypeLine(NamedTuple):
    """What is said of one type. ``mentions``: by offsets within the segment, the log-probabilities of both brackets."""

    type: str
    presence: float
    mentions: dict[Range, tuple[float, float]]
    alternatives: tuple[Alternative, ...]


def type_line(
    type_: str,
    pieces: Pieces,
    begin: TypeLineStart,
    steps: Sequence[TypeLineStep],
    beyond: Mapping[Range, float],
    floor: float,
) -> TypeLine:
    """A decoded line; an absent type, or one whose line was forced, has no greedy mention.

    ``beyond``: candidates that the line did not take, with their log-probabilities.
    """
    own = spans(len(pieces), steps)
    found = {s: p for s, p in beyond.items() if begin.forced or s not in own}
    if begin.forced:
        found |= {s: opening + closing for s, (opening, closing) in own.items()}
    presence = math.log(begin.presence) if begin.forced else 0.0
    others = tuple(
        Alternative(start=pieces.cores[s], end=pieces.ends[e - 1], type=type_, logprob=min(0.0, p + presence))
        for (s, e), p in sorted(found.items())
        if p + presence >= floor
    )
    said = {} if begin.forced else {(pieces.cores[s], pieces.ends[e - 1]): p for (s, e), p in own.items()}
    return TypeLine(type_, min(1.0, max(0.0, begin.presence)), said, others)


def tagged_line(segment: Segment, lines: Sequence[TypeLine]) -> TaggedLine:
    """The lines of all types as one message. The presence of a mention's own type is part of its opening bracket."""
    presence = max((line.presence for line in lines), default=0.0)
    brackets: dict[tuple[int, int, str], tuple[float, float]] = {}
    for line in lines:
        name = entity_types.get(line.type).name(segment.lang)
        rarer = math.log(line.presence / presence) if line.mentions else 0.0
        for (start, end), (opening, closing) in line.mentions.items():
            brackets[start, end, name] = (min(0.0, opening + rarer), min(0.0, closing))
    rows = encode(segment.text, brackets)
    said: list[float] = []
    for row in rows:
        opened: list[tuple[float, float]] = []
        spans_ = iter(decode(row)[1])  # in the order of their opening brackets
        for mark in _MARKS.finditer(row):
            if mark[0] == "[":
                opened.append(brackets[next(spans_)])
                said.append(opened[-1][0])
            elif mark[0] == "]":
                said.append(opened.pop()[1])
    return TaggedLine(
        segment=segment,
        types=tuple(line.type for line in lines),
        tagged="\n".join(rows),
        presence=presence,
        brackets=tuple(said),
        alternatives=tuple(other for line in lines for other in line.alternatives),
    )
