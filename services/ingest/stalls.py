"""Whether a consumer has come to a silent stop."""

from __future__ import annotations

import time
from collections.abc import Callable


class StallDetector:
    """Looks at a consumer from outside its Kafka thread, which may be what hangs.

    A stall is something that a new replica heals: a poll that does not return, or records that wait though nothing is
    in flight. Documents in flight are no stall, however long they take, and nor is an outage, which is retried.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._polled = self._moved = clock()
        self._was: object = None

    def polled(self) -> None:
        """A call to the broker returned, or failed."""
        self._polled = self._clock()

    def look(self, *, idle: bool, state: object) -> None:
        """``idle``: records wait, none is in flight, and nothing holds them back; ``state`` changes with progress."""
        if not idle or state != self._was:
            self._was = state
            self._moved = self._clock()

    def stalled(self) -> str | None:
        """What has stalled; None if all is well."""
        now = self._clock()
        if now - self._polled > self._limit_s:
            return f"no poll of Kafka has returned for {now - self._polled:.0f} s"
        if now - self._moved > self._limit_s:
            return f"records wait, and for {now - self._moved:.0f} s none was taken up"
        return None
