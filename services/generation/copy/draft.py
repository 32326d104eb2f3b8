"""Speculative decoding of one line: the text itself is the draft.

A line is drafted as the plain text. One forward pass over the next tokens of the draft gives, at every decision, the
model's choice. The draft is accepted up to the first action that the model rejects, which is corrected, and the rest
is drafted again. By induction over the line the result is that of greedy token-by-token decoding under the same
grammar: the model took every decision with exactly the preceding line in view. (Jacobi decoding,
Santilli et al. 2023, arXiv 2305.10427, with the source text as the draft.)

Where mentions end and what type they have is guessed from the mentions of earlier lines.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from services.generation.copy.forward import Answer, Part, Task
from services.generation.copy.lines import Start, Step
from shared.model.cache import Cache
from shared.model.masks import causal
from shared.text.grammar import CLOSE, COPY, END, LABEL, OPEN, Action, Labels, LineState, Script, Typed
from shared.text.pieces import Pieces

MARGIN = 24  # slots of a line for brackets and labels; a line that needs more is moved
_LONGEST = 12  # most pieces of a mention that is remembered


class Memory:
    """Mentions of earlier lines, used to draft. Only a guess, so threads share it without a lock."""

    def __init__(self, size: int = 50_000) -> None:
        """``size``: number of mentions to remember."""
        self._size = size
        self._types: dict[tuple[str, ...], str] = {}
        self._counts: Counter[str] = Counter()

    def learn(self, pieces: Pieces, spans: Sequence[Typed]) -> None:
        """Remember a line's mentions."""
        if len(self._types) >= self._size:
            self._types.clear()
        for first, last, key in spans:
            if last - first <= _LONGEST:
                self._types[self._surface(pieces, first, last)] = key
            self._counts[key] += 1

    def ends(self, pieces: Pieces, first: int) -> int | None:
        """Where the longest known mention that begins at a piece ends."""
        for last in range(min(first + _LONGEST, len(pieces)), first, -1):
            if self._surface(pieces, first, last) in self._types:
                return last
        return None

    def type(self, pieces: Pieces, first: int, last: int, labels: Labels) -> int:
        """The likeliest type of a span, by its index."""
        known = self._types.get(self._surface(pieces, first, last)) if last - first <= _LONGEST else None
        if known in labels.types:
            return labels.types.index(known)
        return max(range(len(labels.types)), key=lambda i: self._counts[labels.types[i]])

    @staticmethod
    def _surface(pieces: Pieces, first: int, last: int) -> tuple[str, ...]:
        return tuple(pieces.core(i) for i in range(first, last))


@dataclass(slots=True)
class _Drafted:
    """A drafted action of the current pass: the token before it, counted from the line's first, and its options."""

    action: Action
    before: int
    options: tuple[Action, ...]
    first: tuple[int, ...]


@dataclass(slots=True)
class Line:
    """A segment's line being decoded.

    ``steps``: accepted actions; ``tokens``: of the line before each of them, and before what follows; ``done``: tokens
    of the line whose keys and values are in the cache, behind the prompt's, in ``room`` slots from ``slot`` on;
    ``unrun``: accepted tokens that are not in it yet.
    """

    pieces: Pieces
    script: Script
    slot: int
    room: int
    begin: Start
    state: LineState
    prompt: int
    steps: list[Step] = field(default_factory=list)
    tokens: list[int] = field(default_factory=lambda: [0])
    done: int = 0
    unrun: tuple[int, ...] = ()
    guess: deque[Action] = field(default_factory=deque)
    drafted: list[_Drafted] = field(default_factory=list)

    @property
    def past(self) -> int:
        """Tokens in the cache, the prompt's too."""
        return self.prompt + self.done

    def accept(self, step: Step) -> None:
        """Take an action."""
        self.unrun = self.script.ids(self.state, step.action)
        self.tokens.append(self.tokens[-1] + len(self.unrun))
        self.steps.append(step)
        self.state.apply(step.action)


def decoded(line: Line, memory: Memory, lookahead: int, cache: Cache, device: torch.device) -> Task[None]:
    """The passes over a line's draft; each accepts it up to and including the first correction."""
    line.accept(line.begin.first)
    while not line.state.done:
        ids = _draft(line, memory, lookahead)
        answer: Answer = []
        if ids:
            make_room(line, line.past, len(ids), cache)
            (answer,) = yield [
                Part(
                    ids,
                    range(line.past, line.past + len(ids)),
                    causal(len(ids), line.past, device),
                    line.slot,
                    line.past,
                    [(d.before - line.done, d.first) for d in line.drafted if d.options],
                )
            ]
        _check(line, answer, len(ids))


def make_room(line: Line, past: int, tokens: int, cache: Cache) -> None:
    """Makes room for so many tokens after the first ``past`` of the line's row, which are kept."""
    if past + tokens > line.room:
        slot, room = line.slot, line.room
        line.room = 2 * room + tokens
        line.slot = cache.take(line.room)
        cache.copy(slot, line.slot, past)
        cache.give_back(slot, room)


def _draft(line: Line, memory: Memory, lookahead: int) -> list[int]:
    """The tokens to check next, from the first without keys and values; None if there is nothing to decide."""
    script, state = line.script, line.state.copy()
    planned: dict[int, int | None] = {}  # guessed ends of the open mentions, by the piece at which they begin
    ids = list(line.unrun)
    line.drafted = []
    guess = line.guess.copy()
    keep = 0
    while not state.done:
        if len(ids) > lookahead and line.drafted and line.drafted[-1].options:
            break  # tokens after a correction are checked again: the rest waits until this much is accepted
        options, first = script.options(state)
        action = _next(state, guess, planned, options, line, memory)
        if len(options) < 2:
            options, first = (), ()
        else:
            keep = len(ids)
        line.drafted.append(_Drafted(action, line.done + len(ids) - 1, options, first))
        ids += script.ids(state, action)
        state.apply(action)
    del ids[keep:]  # nothing depends on tokens after the last decision
    return ids


def _next(
    state: LineState,
    guess: deque[Action],
    planned: dict[int, int | None],
    options: tuple[Action, ...],
    line: Line,
    memory: Memory,
) -> Action:
    """The action to draft at a place."""
    while guess:
        action = guess.popleft()
        if action in options:
            return action
    if state.node is not None:
        type_ = memory.type(line.pieces, state.open[-1], state.copied, line.script.labels)
        for action in options:
            if type_ in state.node[action - LABEL].types:
                return action
        return options[0]
    if state.open:
        top = state.open[-1]
        if top not in planned:
            planned[top] = memory.ends(line.pieces, top)
        if CLOSE in options and (planned[top] == state.copied or COPY not in options):
            return CLOSE
    return COPY if COPY in options else END if END in options else options[0]


def _check(line: Line, answer: Answer, run: int) -> None:
    """Accepts the draft up to and including the first action that the model rejects, which is corrected.

    ``run``: number of tokens in the pass.
    """
    logprobs = iter(answer)
    decided = [dict(zip(d.options, next(logprobs), strict=True)) if d.options else None for d in line.drafted]
    wanted = [
        d.action if found is None else max(found, key=found.__getitem__)
        for d, found in zip(line.drafted, decided, strict=True)
    ]
    line.guess.clear()
    done = line.done + run
    for i, (drafted, action, found) in enumerate(zip(line.drafted, wanted, decided, strict=True)):
        line.accept(Step(action, found))
        if action != drafted.action:
            done = max(line.done, drafted.before + 1)
            line.guess.extend(_corrected([d.action for d in line.drafted[i:]], wanted[i:]))
            break
    line.done = done


def _corrected(drafted: Sequence[Action], wanted: Sequence[Action]) -> list[Action]:
    """What to draft after a correction, the first of the pairs. Inadmissible actions are skipped later."""
    guess: list[Action] = []
    for i, (one, other) in enumerate(zip(drafted, wanted, strict=True)):
        if i and other != one and other in (OPEN, CLOSE):
            guess.append(other)
        # A drafted bracket that the model did not choose is dropped; a drafted piece is always copied, unless it is the
        # correction itself.
        if one == COPY:
            if i or other != COPY:
                guess.append(COPY)
        elif i and other == one:
            guess.append(one)
    return guess
