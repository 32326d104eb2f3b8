"""Speculative decoding of one type's line: the text itself is the draft.

One forward pass over the next tokens of the draft tells, at every decision, what the model would say there. What it
agrees with is accepted; the first action that it rejects is corrected, and the rest is drafted anew (Jacobi decoding,
Santilli et al. 2023, arXiv 2305.10427, with the source text as the draft).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from services.generation.copy.forward import Part
from services.generation.per_type.lines import TypeLineStart, TypeLineStep
from shared.messages import Segment
from shared.model.cache import Cache
from shared.model.masks import causal
from shared.text.per_type import Action, PerTypeTokens, State
from shared.text.pieces import Pieces

MARGIN = 16  # slots of a line for brackets; one that needs more moves


@dataclass(slots=True)
class Prefix:
    """A segment's shared beginning: its pieces and tokens."""

    segment: Segment
    pieces: Pieces
    ids: list[int]


@dataclass(slots=True)
class DraftedLine:
    """A line under way. ``steps`` are accepted; ``draft`` is what is guessed to follow.

    ``state`` is that behind the accepted actions. ``done`` counts the line's tokens (header included) whose keys and
    values are in the cache, behind the prefix's, in its ``room`` slots from ``slot`` on.
    """

    prefix: Prefix
    type: str
    header: tuple[int, ...]
    begin: TypeLineStart
    state: State
    steps: list[TypeLineStep] = field(default_factory=list)
    draft: list[Action] = field(default_factory=list)
    done: int = 0
    slot: int = 0
    room: int = 0
    # Filled for the pass under way:
    ids: list[int] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)

    @property
    def absent(self) -> bool:
        """Whether the type is absent; of one that is there nothing may be left to draft, in a text of one piece."""
        return self.begin.first.action is Action.ABSENT

    @property
    def past(self) -> int:
        """Tokens in the cache, the prefix's too."""
        return len(self.prefix.ids) + self.done

    @property
    def after_open(self) -> bool:
        """Whether an opening bracket was steps last: it has taken the space of what follows."""
        return bool(self.steps) and self.steps[-1].action is Action.OPEN

    def accept(self, step: TypeLineStep) -> None:
        """Take an action."""
        self.steps.append(step)
        self.state.apply(step.action)


@dataclass(slots=True)
class Pending:
    """A drafted action in the pass under way: its decision, and at which token."""

    action: Action
    before: int  # index in the line of the token before it; the action's own tokens follow
    options: tuple[Action, ...] = ()
    first_ids: tuple[int, ...] = ()


class Drafter:
    """Drafts lines and checks them. ``lookahead``: tokens of a line that one pass checks."""

    def __init__(self, tokens: PerTypeTokens, lookahead: int, device: torch.device) -> None:
        self._tokens, self._lookahead, self.device = tokens, lookahead, device

    def prepare(self, line: DraftedLine, cache: Cache) -> Part | None:
        """The drafted tokens from the first one without keys and values; none where there is nothing to decide."""
        pieces, state, after_open = line.prefix.pieces, copied_state(line.state), line.after_open
        # The last steps action's tokens have no keys yet: they come first.
        line.ids = list(self._last(line))
        line.pending = []
        keep = 0
        for action in line.draft:
            options = state.admissible()
            if len(line.ids) > self._lookahead and line.pending and line.pending[-1].options:
                break  # what stands behind a correction is checked again: the rest waits until this much is steps
            pending = Pending(action, line.done + len(line.ids) - 1)
            if len(options) > 1:
                pending.options = options
                pending.first_ids = self.first_ids(pieces, state.copied, options, after_open=after_open)
                keep = len(line.ids)
            line.pending.append(pending)
            line.ids += self._tokens.action(pieces, state.copied, action, after_open=after_open)
            state.apply(action)
            after_open = action is Action.OPEN
        del line.ids[keep:]  # nothing depends on tokens after the last decision
        if not line.ids:
            return None
        self._make_room(line, len(line.ids), cache)
        decisions = [pending for pending in line.pending if pending.options]
        return Part(
            line.ids,
            range(line.past, line.past + len(line.ids)),
            causal(len(line.ids), line.past, self.device),
            line.slot,
            line.past,
            [(pending.before - line.done, pending.first_ids) for pending in decisions],
        )

    def _last(self, line: DraftedLine) -> tuple[int, ...]:
        """Tokens of the last steps action."""
        last = line.steps[-1].action
        after_open = len(line.steps) > 1 and line.steps[-2].action is Action.OPEN
        copied = line.state.copied - (last is Action.COPY)
        return self._tokens.action(line.prefix.pieces, copied, last, after_open=after_open)

    def _make_room(self, line: DraftedLine, tokens: int, cache: Cache) -> None:
        """See that so many fit behind those that the line has in the cache."""
        if line.past + tokens > line.room:
            slot, room = line.slot, line.room
            line.room = 2 * room + tokens
            line.slot = cache.take(line.room)
            cache.copy(slot, line.slot, line.past)
            cache.give_back(slot, room)

    def check(self, line: DraftedLine, logprobs_: Sequence[list[float]]) -> None:
        logprobs = iter(logprobs_)
        decided = [dict(zip(p.options, next(logprobs), strict=True)) if p.options else None for p in line.pending]
        wanted = [
            p.action if d is None else max(d, key=d.__getitem__) for p, d in zip(line.pending, decided, strict=True)
        ]
        for i, (pending, want, found) in enumerate(zip(line.pending, wanted, decided, strict=True)):
            line.accept(TypeLineStep(want, found))
            if want is not pending.action:
                line.done = max(line.done, pending.before + 1)  # what stands before the corrected action
                rest = list(zip([p.action for p in line.pending], wanted, strict=True))[i:]
                line.draft = completed(line.state, _corrected(rest) + line.draft[len(line.pending) :])
                return
        line.done += len(line.ids)
        line.draft = line.draft[len(line.pending) :]

    def first_ids(self, pieces: Pieces, copied: int, options: Sequence[Action], *, after_open: bool) -> tuple[int, ...]:
        return tuple(self._tokens.action(pieces, copied, option, after_open=after_open)[0] for option in options)


def copied_state(state: State) -> State:
    return State(state.pieces, state.copied, list(state.open), state.started)


def _corrected(rest: Sequence[tuple[Action, Action]]) -> list[Action]:
    """What to draft after a correction, from (drafted, wished) pairs, the corrected one first.

    Only a guess: the next pass checks it. The corrected action itself is steps and not repeated here.
    """
    out: list[Action] = []
    for i, (drafted, wished) in enumerate(rest):
        if i > 0 and wished is not drafted and wished is not Action.COPY:
            out.append(wished)
        # A drafted bracket that the model would rather not have is dropped; a drafted piece is always copied, unless
        # it is the correction itself.
        if drafted is Action.COPY:
            if not (i == 0 and wished is Action.COPY):
                out.append(Action.COPY)
        elif i > 0 and wished is drafted:
            out.append(drafted)
        elif i > 0 and drafted is Action.OPEN and wished is Action.CLOSE:
            out.append(Action.OPEN)
    return out


def completed(state: State, guess: Sequence[Action]) -> list[Action]:
    """A guess made into an admissible rest of the line behind a state.

    A guessed mention that nothing closes ends with the line: in the pass that follows the model says where it really
    ends.
    """
    state = copied_state(state)
    out: list[Action] = []

    def take(action: Action) -> None:
        state.apply(action)
        out.append(action)

    for action in guess:
        if action in state.admissible():
            take(action)
    while state.copied < state.pieces:
        take(Action.COPY)
    while state.open:
        take(Action.CLOSE)
    return out
