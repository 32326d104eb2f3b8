"""Decoded lines: what was decided at each step, and what a line and its candidates are made of. For every engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared.messages import Alternative, Segment, TaggedLine
from shared.text.grammar import Action, State, tagged_text
from shared.text.pieces import Pieces

Range = tuple[int, int]  # of pieces


@dataclass(slots=True)
class Step:
    """A settled action, with the log-probability of each admissible one at its decision (none: nothing to decide)."""

    action: Action
    logprobs: dict[Action, float] | None


class Start(NamedTuple):
    """How a line begins."""

    presence: float  # probability that the type is there at all
    forced: bool  # the type is absent, but had enough of a chance that the line is decoded all the same
    first: Step


class PassedOver(NamedTuple):
    """An action that was not taken. ``at``: index of the step in whose place it would stand; ``state``: before it."""

    at: int
    state: State
    action: Action
    logprob: float  # for a closing that of its opening included


def begun(decided: Mapping[Action, float], floor: float) -> Start:
    """The first action from the log-probabilities of the admissible ones. ``floor``: see ``candidate_floor``."""
    presence = 1.0 - math.exp(decided[Action.ABSENT]) if Action.ABSENT in decided else 1.0
    best = max(decided, key=decided.__getitem__)
    forced = best is Action.ABSENT and len(decided) > 1 and presence >= floor
    if best is Action.ABSENT and not forced:
        return Start(presence, False, Step(best, dict(decided)))
    rest: dict[Action, float] = {a: p for a, p in decided.items() if a is not Action.ABSENT}
    norm = math.log(sum(math.exp(p) for p in rest.values()) or 1e-300)
    rest = {a: p - norm for a, p in rest.items()}  # given that the type is there
    return Start(presence, forced, Step(max(rest, key=rest.__getitem__), rest))


def spans(pieces: int, steps: Iterable[Step]) -> list[tuple[Range, float]]:
    """The line's mentions as piece ranges, with the log-probability of their two brackets."""
    state = State(pieces)
    opened: list[float] = []
    out = []
    for step in steps:
        logprob = 0.0 if step.logprobs is None else step.logprobs[step.action]
        if step.action is Action.OPEN:
            opened.append(logprob)
        if (span := state.apply(step.action)) is not None:
            out.append((span, opened.pop() + logprob))
    return out


def passed_over(pieces: int, steps: Iterable[Step], floor: float) -> Iterator[PassedOver]:
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


def alternatives(
    pieces: Pieces, begin: Start, steps: Sequence[Step], beyond: Mapping[Range, float], floor: float
) -> tuple[Alternative, ...]:
    """The candidates beyond the greedy mentions: ``beyond``, with their log-probabilities, and a forced line's own."""
    own = dict(spans(len(pieces), steps))
    found = {**beyond, **own} if begin.forced else {s: p for s, p in beyond.items() if s not in own}
    presence = math.log(begin.presence) if begin.forced else 0.0
    return tuple(
        Alternative(start=pieces.cores[s], end=pieces.ends[e - 1], logprob=min(0.0, p + presence))
        for (s, e), p in sorted(found.items())
        if p + presence >= floor
    )


def tagged_line(
    segment: Segment,
    type_: str,
    pieces: Pieces,
    begin: Start,
    steps: Sequence[Step],
    others: tuple[Alternative, ...],
) -> TaggedLine:
    """The message; of an absent type, or of a line that was forced, with no greedy mention."""
    tagged = ""
    brackets: tuple[float, ...] = ()
    if not begin.forced and begin.first.action is not Action.ABSENT:
        tagged = tagged_text(pieces, [step.action for step in steps])
        brackets = tuple(
            min(0.0, 0.0 if step.logprobs is None else step.logprobs[step.action])
            for step in steps
            if step.action in (Action.OPEN, Action.CLOSE)
        )
    return TaggedLine(
        segment=segment,
        type=type_,
        tagged=tagged,
        presence=min(1.0, max(0.0, begin.presence)),
        brackets=brackets,
        alternatives=others,
    )
