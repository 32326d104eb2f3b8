"""Decoded lines: the decisions at each step, and the message made from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared.messages import Alternative, Segment, TaggedLine
from shared.text.grammar import ABSENT, CLOSE, LABEL, OPEN, Action, Labels, LineState, Typed, tagged_text
from shared.text.pieces import Pieces


@dataclass(slots=True)
class Step:
    """A settled action, and the log-probability of each admissible one at its decision (none: nothing to decide)."""

    action: Action
    logprobs: dict[Action, float] | None

    @property
    def logprob(self) -> float:
        """The log-probability of the action."""
        return 0.0 if self.logprobs is None else self.logprobs[self.action]


class Start(NamedTuple):
    """How a line begins.

    ``presence``: probability that the segment has a mention at all; ``forced``: most likely it has
    none, but one is probable enough for the line to be decoded anyway.
    """

    presence: float
    forced: bool
    first: Step


def start(decided: Mapping[Action, float], floor: float) -> Start:
    """The first action, from the log-probabilities of the admissible ones. ``floor``: see ``candidate_floor``."""
    presence = 1.0 - math.exp(decided[ABSENT]) if ABSENT in decided else 1.0
    best = max(decided, key=decided.__getitem__)
    forced = best == ABSENT and len(decided) > 1 and presence >= floor
    if best == ABSENT and not forced:
        return Start(presence, False, Step(best, dict(decided)))
    rest = {a: p for a, p in decided.items() if a != ABSENT}
    norm = math.log(sum(math.exp(p) for p in rest.values()) or 1e-300)
    rest = {a: p - norm for a, p in rest.items()}  # given that there is a mention
    return Start(presence, forced, Step(max(rest, key=rest.__getitem__), rest))


def mentions(begin: LineState, labels: Labels, steps: Iterable[Step]) -> dict[Typed, float]:
    """The line's mentions, with the log-probability of their brackets and type.

    ``begin``: the state before the line, which is consumed.
    """
    opened: list[float] = []
    closing = 0.0
    found: dict[Typed, float] = {}
    for step in steps:
        if step.action == OPEN:
            opened.append(step.logprob)
        elif step.action == CLOSE:
            closing = step.logprob
        elif step.action >= LABEL:
            closing += step.logprob
        if (closed := begin.apply(step.action)) is not None:
            first, last, type_ = closed
            found[first, last, labels.types[type_]] = opened.pop() + closing
    return found


def alternatives(
    pieces: Pieces,
    begin: Start,
    own: Mapping[Typed, float],
    beyond: Mapping[Typed, float],
    floor: float,
) -> tuple[Alternative, ...]:
    """The candidates beyond the greedy mentions: ``beyond``, and a forced line's ``own``, with log-probabilities."""
    found = {**beyond, **own} if begin.forced else {s: p for s, p in beyond.items() if s not in own}
    presence = math.log(begin.presence) if begin.forced else 0.0
    return tuple(
        Alternative(
            start=pieces.cores[span[0]],
            end=pieces.ends[span[1] - 1],
            type=span[2],
            logprob=min(0.0, logprob + presence),
        )
        for span, logprob in sorted(found.items())
        if logprob + presence >= floor
    )


def tagged_line(
    segment: Segment,
    pieces: Pieces,
    labels: Labels,
    begin: Start,
    steps: Sequence[Step],
    others: tuple[Alternative, ...] = (),
) -> TaggedLine:
    """The message; without greedy mentions if there are none or the line was forced."""
    tagged = ""
    brackets: list[float] = []
    if not begin.forced and begin.first.action != ABSENT:
        tagged = tagged_text(pieces, [step.action for step in steps], labels)
        for step in steps:
            if step.action in (OPEN, CLOSE):
                brackets.append(min(0.0, step.logprob))
            elif step.action >= LABEL:
                brackets[-1] = min(0.0, brackets[-1] + step.logprob)
    return TaggedLine(
        segment=segment,
        types=labels.types,
        tagged=tagged if brackets else "",
        presence=min(1.0, max(0.0, begin.presence)),
        brackets=tuple(brackets),
        alternatives=others,
    )
