"""A cache in this process, in front of the store that replicas share."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from cachetools import TTLCache

# Bytes of an entry besides its value (key and tables of the cache), measured with tracemalloc on Python 3.11.
_OVERHEAD = 400


class LocalCache:
    """A :class:`services.pipeline.assembly.SegmentCache` that evicts the least recently used entry. Thread-safe."""

    def __init__(self, max_bytes: int, ttl_s: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """``max_bytes``: of all entries, 0 for no cache; ``ttl_s``: lifetime of an entry in seconds, 0 for ever."""
        self._lock = threading.Lock()
        self._entries: TTLCache[str, bytes] = TTLCache(
            max_bytes, ttl_s or math.inf, clock, getsizeof=lambda value: len(value) + _OVERHEAD
        )

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]:
        found: dict[str, bytes] = {}
        with self._lock:
            for key in keys:
                with suppress(KeyError):  # `get` reads the clock twice, and fails if an entry expires in between
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
