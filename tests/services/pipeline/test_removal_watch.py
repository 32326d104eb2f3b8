from __future__ import annotations

import asyncio

from services.pipeline.cache import LocalCache
from services.pipeline.removal_watch import RemovalWatch
from shared.errors import StoreError


def test_a_removal_empties_the_cache_twice() -> None:
    """What was read from the store before the removal may come in after the first time."""
    told: list[int | Exception] = [3, 3, 4, 4, 4, StoreError("away", retryable=True), 0]
    cache = LocalCache(10**6)

    def removals() -> int:
        now = told.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    async def left() -> list[bool]:
        watch = RemovalWatch(removals, cache, 1.0)
        found = []
        while told:
            cache.put_segments({"a": b"text"})
            await watch.look()
            found.append(cache.get_segments(["a"]) != [None])
        return found

    assert asyncio.run(left()) == [True, True, False, False, True, True, False]
