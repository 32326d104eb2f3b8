"""Empties the cache in this process where cached segments were removed from the store: a document was erased."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.pipeline.cache import LocalCache
from shared.errors import StoreError


class RemovalWatch:
    """Looks whether segments were removed. Which ones is not told: what is still in the store comes back from there."""

    def __init__(self, removals: Callable[[], int], cache: LocalCache, every_s: float) -> None:
        """``removals`` reads from the store what changes with each removal, and may block."""
        self._removals = removals
        self._cache = cache
        self._every_s = every_s
        self._seen: int | None = None
        self._again = False

    async def run(self) -> None:
        """Looks every ``every_s`` seconds until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Looks once."""
        try:
            seen = await asyncio.to_thread(self._removals)
        except StoreError:  # without the store no cached decision is used
            return
        # Once more after a change: what had been read before the removal may have come in since.
        changed = self._seen is not None and seen != self._seen
        if changed or self._again:
            self._cache.clear()
        self._seen, self._again = seen, changed
