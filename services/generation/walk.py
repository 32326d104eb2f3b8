"""A line token by token, for engines that say one token at a time: which may come next, and what was decided."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from services.generation.copy.lines import Step
from shared.text.grammar import CLOSE, OPEN, Action, LineState, Script

KEY = "biobracket"  # of a request's own arguments, which tell the process that runs the model what its walk is


class Walk:
    """Where a line stands. ``done``: actions that the prompt holds already.

    ``closing`` is the greatest length, in pieces, of a mention that ``done`` has just opened, or is closing: the walk
    then ends with its label, and opens no other. 0 walks the whole line.
    """

    def __init__(self, script: Script, done: Iterable[Action] = (), closing: int = 0) -> None:
        self._script = script
        (self._end,) = script.tokens.end
        self._state = after(script, done)
        self._closing = closing
        self._depth = len(self._state.open)
        self._rest: deque[int] = deque()
        self._choices = self._chosen_by()

    @property
    def choices(self) -> Mapping[int, Action]:
        """The actions that may come next, by their first token; none inside an action or at the end."""
        return {} if self._rest else self._choices

    def allowed(self) -> tuple[int, ...]:
        """The tokens that may come next: the first of the rest of an action, those of the choices, or the end."""
        return (self._rest[0],) if self._rest else tuple(self._choices) or (self._end,)

    def take(self, token: int) -> Action | None:
        """Go on with a token; the action that it begins, if it begins one. ValueError where it may not come."""
        if token not in self.allowed():
            raise ValueError("generation: a token came that the line does not allow; this is a bug")
        if self._rest:
            self._rest.popleft()
            return None
        action = self._choices.get(token)
        if action is not None:
            self._rest.extend(self._script.ids(self._state, action)[1:])
            self._state.apply(action)
            self._choices = self._chosen_by()
        return action

    def _chosen_by(self) -> dict[int, Action]:
        actions, first = self._script.options(self._state)
        found = dict(zip(first, actions, strict=True))
        if self._closing:
            if len(self._state.open) < self._depth:
                return {}
            if self._state.node is None:
                long = self._state.copied - self._state.open[-1] >= self._closing
                found = {t: a for t, a in found.items() if (a == CLOSE if long else a != OPEN)}
        return found


def after(script: Script, done: Iterable[Action]) -> LineState:
    """The state of a line after some actions."""
    state = script.begin()
    for action in done:
        state.apply(action)
    return state


def steps_of(walk: Walk, said: Sequence[int], logprobs: Sequence[Mapping[int, float]]) -> list[Step]:
    """What a walk decided by saying some tokens. ``logprobs``: for each of them those of the allowed ones, by token."""
    steps = []
    for token, given in zip(said, logprobs, strict=True):
        choices = walk.choices
        if (action := walk.take(token)) is not None:
            decided = {option: given.get(first, -math.inf) for first, option in choices.items()}
            steps.append(Step(action, decided if len(decided) > 1 else None))
    return steps
