"""Which cached segments hold text of which document, so that erasing the document can remove them.

    bb:{<bucket>}:s:<document>   set of the keys of cached segments that hold text of the document
    bb:{erasures}:n              how often cached segments were removed: caches in memory are emptied when it changes

Documents share segments. One that is removed for one document is missing to the others only as a cache entry is: their
results stay, and the model reads the segment once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_REMOVALS = "bb:{erasures}:n"
_AT_ONCE = 1000
_HOUR_S = 3600


class SegmentTraces:
    """The traces of one store. Thread-safe; methods raise what the Redis client does."""

    def __init__(self, client: Any, cache: Any, segment_ttl: int) -> None:
        """``client`` has the results, ``cache`` the segments; ``segment_ttl`` in seconds, 0 for no expiry."""
        self._client = client
        self._cache = cache
        # Replicas keep decisions in memory for as long again as the store does.
        self._ttl = 2 * segment_ttl + _HOUR_S if segment_ttl else 0

    def note(self, traces: str, segments: Iterable[str]) -> None:
        """Notes keys of cached segments under the key ``traces``, which is the document's."""
        found = list(segments)
        if not found:
            return
        with self._client.pipeline(transaction=False) as pipe:
            pipe.sadd(traces, *found)
            if self._ttl:
                pipe.expire(traces, self._ttl)
            pipe.execute()

    def remove(self, traces: str) -> None:
        """Removes the cached segments noted, then what was noted of them."""
        found = list(self._client.smembers(traces))
        for start in range(0, len(found), _AT_ONCE):
            some = found[start : start + _AT_ONCE]
            with self._cache.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.unlink(key)
                pipe.execute()
        if found:
            self._client.incr(_REMOVALS)
            for start in range(0, len(found), _AT_ONCE):
                self._client.srem(traces, *found[start : start + _AT_ONCE])

    def removals(self) -> int:
        """Changes with every removal."""
        return int(self._client.get(_REMOVALS) or 0)
