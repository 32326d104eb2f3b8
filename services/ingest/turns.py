"""Documents of one id go one after the other, so that versions do not overtake one another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A queue for each id that is in use. All of it belongs to one event loop."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def turn(self, id: str) -> AsyncIterator[None]:
        """Waits until everyone who asked for the id before has left; first come, first served."""
        lock = self._locks.setdefault(id, asyncio.Lock())
        self._users[id] = self._users.get(id, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[id] -= 1
            if not self._users[id]:
                del self._users[id], self._locks[id]

    def __len__(self) -> int:
        """How many ids are in use."""
        return len(self._locks)
