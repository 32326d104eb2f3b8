"""Scheme ``per-type.v1``: a line for each type, as a grammar over pieces. The scheme of adapters made before
``labelled.v1``.

A line of one type is a sequence of actions: copy the next piece, open a mention, close one, or say at the very start
that the type is absent. Each action is a fixed run of tokens, told apart by its first. Only where more than one action
is admissible is there anything to decide; everything else is given. Training and decoding share this module, so that
they cannot differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from shared.text.grammar import CopyTokens
from shared.text.pieces import Pieces

SCHEME = "per-type.v1"
MAX_DEPTH = 4  # no corpus here nests mentions of one type deeper than three


_SPECIAL = re.compile(r"[\[\]\\]")


def _escape(text: str) -> str:
    """A bar is not escaped: it has no meaning in this scheme."""
    return _SPECIAL.sub(r"\\\g<0>", text)


class Action(IntEnum):
    """What can be said next."""

    COPY = 0
    OPEN = 1
    CLOSE = 2
    ABSENT = 3


@dataclass(slots=True)
class State:
    """Where a line stands: pieces copied and mentions open, by the piece each began at."""

    pieces: int
    copied: int = 0
    open: list[int] = field(default_factory=list)
    started: bool = False
    absent: bool = False

    def admissible(self) -> tuple[Action, ...]:
        """The actions that may come next, in the order of :class:`Action`; empty when the line is complete."""
        if self.absent:
            return ()
        actions: list[Action] = []
        if self.copied < self.pieces:
            actions.append(Action.COPY)
            if len(self.open) < MAX_DEPTH:
                actions.append(Action.OPEN)
        if self.open and self.open[-1] < self.copied:
            actions.append(Action.CLOSE)
        if not self.started:
            actions.append(Action.ABSENT)
        return tuple(actions)

    def apply(self, action: Action) -> tuple[int, int] | None:
        """Take an action; the piece range of the mention that it closes, if it closes one."""
        self.started = True
        if action is Action.COPY:
            self.copied += 1
        elif action is Action.OPEN:
            self.open.append(self.copied)
        elif action is Action.CLOSE:
            return self.open.pop(), self.copied
        else:
            self.absent = True
        return None


def actions_of(pieces: int, spans: Iterable[tuple[int, int]]) -> list[Action]:
    """The line for piece ranges that nest and do not repeat; the inverse of :func:`spans_of`."""
    opens: dict[int, int] = {}
    closes: dict[int, int] = {}
    for start, end in set(spans):
        opens[start] = opens.get(start, 0) + 1
        closes[end] = closes.get(end, 0) + 1
    if not opens:
        return [Action.ABSENT]
    line: list[Action] = []
    for i in range(pieces + 1):
        line += [Action.CLOSE] * closes.get(i, 0) + [Action.OPEN] * opens.get(i, 0)
        if i < pieces:
            line.append(Action.COPY)
    return line


def spans_of(pieces: int, actions: Iterable[Action]) -> list[tuple[int, int]]:
    """The piece ranges of a line, in the order in which they close."""
    state = State(pieces)
    return [span for action in actions if (span := state.apply(action)) is not None]


def nested_only(spans: Iterable[tuple[int, int]], depth: int = MAX_DEPTH) -> list[tuple[int, int]]:
    """The spans without duplicates, those that cross an earlier (or longer) one, or nest deeper than ``depth``."""
    kept: list[tuple[int, int]] = []
    for start, end in sorted(set(spans), key=lambda s: (s[0], -s[1])):
        around = [k for k in kept if k[0] <= start and end <= k[1]]
        if len(around) < depth and not any(k[0] < start < k[1] < end for k in kept):
            kept.append((start, end))
    return kept


@dataclass(frozen=True, slots=True)
class Decision:
    """A point of a line where more than one action is admissible.

    ``at`` counts the line's tokens before it (0: right after the header), ``actions`` are the admissible ones, ``ids``
    the first token of each, ``taken`` the index of the one that the line takes.
    """

    at: int
    actions: tuple[Action, ...]
    ids: tuple[int, ...]
    taken: int


class PerTypeTokens(CopyTokens):
    """Tokens of prefixes, headers and actions for one tokenizer, remembered. Thread-safe."""

    def prefix(self, pieces: Pieces) -> list[int]:
        """The start token, the text as it stands, and a line break: shared by the lines of every type."""
        ids = list(self.bos)
        for start, end in zip(pieces.starts, pieces.ends, strict=True):
            ids += self.ids(pieces.text[start:end])
        ids += self.newline
        return ids

    def header(self, name: str) -> tuple[int, ...]:
        """``<type name>:``"""
        return self.ids(f"{name}:")

    def copy(self, pieces: Pieces, i: int, *, after_open: bool) -> tuple[int, ...]:
        """Tokens of piece i in a line; an opening bracket before it has taken its space."""
        return self.ids(_escape(pieces.text[pieces.cores[i] if after_open else pieces.starts[i] : pieces.ends[i]]))

    def line(self, pieces: Pieces, actions: Sequence[Action]) -> tuple[list[int], list[Decision]]:
        """Tokens of a line and its decisions. Tokens after the last decision are left out: nothing depends on them."""
        ids: list[int] = []
        decisions: list[Decision] = []
        for step, tokens in self.steps(pieces, actions):
            if step is not None:
                decisions.append(Decision(len(ids), *step))
            ids += tokens
        del ids[decisions[-1].at if decisions else 0 :]
        return ids, decisions

    def steps(
        self, pieces: Pieces, actions: Sequence[Action]
    ) -> Iterator[tuple[tuple[tuple[Action, ...], tuple[int, ...], int] | None, tuple[int, ...]]]:
        """For each action its decision (admissible actions, first ids, which is taken) if any, and its tokens."""
        state = State(len(pieces))
        after_open = False
        for action in actions:
            options = state.admissible()
            tokens = [self.action(pieces, state.copied, option, after_open=after_open) for option in options]
            taken = options.index(action)
            decision = (options, tuple(t[0] for t in tokens), taken) if len(options) > 1 else None
            yield decision, tokens[taken]
            state.apply(action)
            after_open = action is Action.OPEN

    def action(self, pieces: Pieces, copied: int, action: Action, *, after_open: bool) -> tuple[int, ...]:
        """Tokens of an action with ``copied`` pieces behind it."""
        if action is Action.COPY:
            return self.copy(pieces, copied, after_open=after_open)
        if action is Action.OPEN:
            return self.spaced_open if pieces.spaced(copied) and not after_open else self.open
        return self.close if action is Action.CLOSE else self.absent
