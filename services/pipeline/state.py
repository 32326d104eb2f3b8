"""What decisions of selection rest on besides the model: a decision that was cached counts while this is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from shared.messages import Basis, exemplars_state

# For an answer of selection, which may be in a batch; until then what it said last counts.
_PATIENCE_S = 10.0


class State(NamedTuple):
    """The settings of selection, and the exemplars as :class:`shared.messages.Selected` names them."""

    settings: str
    exemplars: str


class StateWatch:
    """Knows the state for each document, without asking selection for each."""

    def __init__(self, ask: Callable[[], Awaitable[Basis]], version: Callable[[], int], every_s: float) -> None:
        """``ask``: selection; ``version``: the store, in a thread, for the version of the feedback."""
        self._ask = ask
        self._version = version
        self._every_s = every_s
        self._basis: Basis | None = None

    async def run(self) -> None:
        """Asks selection every so many seconds, until it is cancelled."""
        while True:
            try:
                self._basis = await asyncio.wait_for(self._ask(), _PATIENCE_S)
            except Exception:  # whatever it is: what is not known for sure is not used
                self._basis = None
            await asyncio.sleep(self._every_s)

    async def __call__(self) -> State | None:
        """The state now; none where selection does not answer. StoreError where the store does not."""
        basis = self._basis
        if basis is None:
            return None
        # For each document: what a reviewer said is in force from the next one on.
        version = await asyncio.to_thread(self._version)
        return State(basis.settings, exemplars_state(basis.index, version))
