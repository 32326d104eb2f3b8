"""What selection decides by, besides the model. A cached decision holds while this is unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from shared.messages import Basis, exemplars_state

# How long selection, which may be in a batch, has to answer; meanwhile its last answer counts.
_PATIENCE_S = 10.0


class SelectionState(NamedTuple):
    """The settings of selection, and the exemplars as :class:`shared.messages.Selected` names them."""

    settings: str
    exemplars: str


class SelectionWatch:
    """Keeps the state at hand, so that selection is not asked for each document."""

    def __init__(self, ask: Callable[[], Awaitable[Basis]], version: Callable[[], int], every_s: float) -> None:
        """``ask`` asks selection; ``version`` reads the version of the feedback from the store and may block."""
        self._ask = ask
        self._version = version
        self._every_s = every_s
        self._basis: Basis | None = None

    async def run(self) -> None:
        """Asks selection every ``every_s`` seconds until cancelled."""
        while True:
            try:
                self._basis = await asyncio.wait_for(self._ask(), _PATIENCE_S)
            except Exception:  # whatever the reason, an uncertain state is not used
                self._basis = None
            await asyncio.sleep(self._every_s)

    async def __call__(self) -> SelectionState | None:
        """The current state; None where selection does not answer. StoreError where the store does not."""
        basis = self._basis
        if basis is None:
            return None
        # Read for each document, so that feedback takes effect with the next one.
        version = await asyncio.to_thread(self._version)
        return SelectionState(basis.settings, exemplars_state(basis.index, version))
