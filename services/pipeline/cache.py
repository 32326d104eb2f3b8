"""A cache in the process, before the one that replicas share."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from cachetools import TTLCache

# Bytes of an entry beside its value: the key and the tables of the cache, by tracemalloc on Python 3.11.
_OVERHEAD = 400


class LocalCache:
    """See :class:`services.pipeline.assembly.SegmentCache`. What was not asked for longest goes first. Thread-safe."""

    def __init__(self, max_bytes: int, ttl_s: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """``max_bytes``: of all entries, 0 holds none; ``ttl_s``: seconds that one is kept, 0 for good."""
        self._lock = threading.Lock()
        self._entries: TTLCache[str, bytes] = TTLCache(
            max_bytes, ttl_s or math.inf, clock, getsizeof=lambda value: len(value) + _OVERHEAD
        )

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]:
        found: dict[str, bytes] = {}
        with self._lock:
            for key in keys:
                with suppress(KeyError):  # `get` looks at the clock twice, and fails where an entry ends in between
                    found[key] = self._entries[key]
        return [found.get(key) for key in keys]

    def put_segments(self, values: Mapping[str, bytes]) -> None:
        with self._lock:
            for key, value in values.items():
                try:
                    self._entries[key] = value
                except ValueError:  # larger than the whole cache
                    with suppress(KeyError):
                        del self._entries[key]
