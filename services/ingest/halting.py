"""The halt of a consumer group: told by whichever replica meets too many dead letters, seen by all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.ingest.breaker import Breaker
from services.ingest.retries import Retries
from shared.errors import StoreError
from shared.runtime.logs import get_logger
from shared.runtime.metrics import HALTED, Observe

if TYPE_CHECKING:
    from shared.backends.halt_store import HaltStore

# How often to look whether the group is halted.
_LOOK_S = 1.0
_REMEDY = "see `biobracket dead-letters list`, then run `biobracket dead-letters resume`"

logger = get_logger(__name__)


class Halting:
    """Whether one consumer may take up records; all of it belongs to one event loop."""

    def __init__(self, halts: HaltStore, breaker: Breaker, retries: Retries, observe: Observe) -> None:
        self._halts = halts
        self._breaker = breaker
        self._retries = retries
        self._observe = observe
        self._why: str | None = None
        self._due = 0.0
        # While a halt is told, the store knows less than this object does.
        self._telling = asyncio.Lock()

    @property
    def why(self) -> str | None:
        """Why the group is halted; None if it is not."""
        return self._why

    @property
    def problem(self) -> str | None:
        """The same, and what to do."""
        return None if self._why is None else f"halted, since {self._why}; {_REMEDY}"

    async def look(self) -> None:
        """Asks the store, now and then."""
        now = asyncio.get_running_loop().time()
        if now < self._due or self._telling.locked():
            return
        self._due = now + _LOOK_S
        async with self._telling:
            try:
                why = await asyncio.to_thread(self._halts.halted)
            except StoreError:  # as it was; without a store nothing is done anyway
                return
            if self._why and not why:
                self._breaker.reset()
                logger.warning("resumed")
            elif why and not self._why:
                logger.error("halted", reason="dead_letters")
            self._set(why)

    async def count(self, *, dead: bool) -> None:
        """Counts a record that is done, and halts the group if it is time to."""
        why = self._breaker.count(dead=dead)
        if why is None or self._why is not None:
            return
        async with self._telling:
            if self._why is None:
                logger.error("halted", reason="dead_letters")
                self._set(why)
                await self._retries.persist("store", lambda: asyncio.to_thread(self._halts.halt, why))

    def _set(self, why: str | None) -> None:
        self._why = why
        self._observe(HALTED, float(why is not None))
