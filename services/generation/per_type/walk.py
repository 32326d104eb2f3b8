"""A line token by token, for engines that say one token at a time: which may come next, and what was decided."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from services.generation.per_type.lines import TypeLineStep
from shared.text.per_type import Action, PerTypeTokens, State
from shared.text.pieces import Pieces

KEY = "biobracket"  # of a request's own arguments, which tell the process that runs the model what its walk is


class Walk:
    """Where a line stands. ``done``: actions that the prompt holds already.

    ``closing`` is the greatest length, in pieces, of a mention that ``done`` has just opened: the walk then ends with
    it, and opens no other. 0 walks the whole line.
    """

    def __init__(
        self, tokens: PerTypeTokens, pieces: Pieces, end: int, done: Sequence[Action] = (), closing: int = 0
    ) -> None:
        self._tokens = tokens
        self._pieces = pieces
        self._end = end
        self._state = State(len(pieces))
        self._after_open = False
        for action in done:
            self._apply(action)
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
            self._rest.extend(self._ids(action)[1:])
            self._apply(action)
            self._choices = self._chosen_by()
        return action

    def _chosen_by(self) -> dict[int, Action]:
        options = self._state.admissible()
        if self._closing:
            if len(self._state.open) < self._depth:
                options = ()
            elif self._state.copied - self._state.open[-1] >= self._closing:
                options = (Action.CLOSE,)
            else:
                options = tuple(option for option in options if option is not Action.OPEN)
        return {self._ids(option)[0]: option for option in options}

    def _ids(self, action: Action) -> tuple[int, ...]:
        return self._tokens.action(self._pieces, self._state.copied, action, after_open=self._after_open)

    def _apply(self, action: Action) -> None:
        self._state.apply(action)
        self._after_open = action is Action.OPEN


def steps_of(walk: Walk, said: Sequence[int], logprobs: Sequence[Mapping[int, float]]) -> list[TypeLineStep]:
    """What a walk decided by saying some tokens. ``logprobs``: for each of them those of the allowed ones, by token."""
    steps = []
    for token, given in zip(said, logprobs, strict=True):
        choices = walk.choices
        if (action := walk.take(token)) is not None:
            decided = {option: given.get(first, -math.inf) for first, option in choices.items()}
            steps.append(TypeLineStep(action, decided if len(decided) > 1 else None))
    return steps
