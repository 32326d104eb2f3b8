"""Limits of a caller and of failed authentications, kept in the memory of a replica: each replica counts by itself."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import limits
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter


class TooMany(Exception):
    """A limit is exceeded; ``retry_after_s`` whole seconds later there may be room."""

    def __init__(self, problem: str, remedy: str, retry_after_s: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.retry_after_s = retry_after_s


class Limits:
    """Requests of a caller per time and at once, and failed authentications of an address per time.

    The rates are of the form ``600/minute``.
    """

    def __init__(self, *, rate: str, concurrent: int, failures: str) -> None:
        self._rate = limits.parse(rate)
        self._failures = limits.parse(failures)
        self._concurrent = concurrent
        self._under_way: Counter[str] = Counter()
        # Two counters a caller, whatever the rate; a moving window would keep the time of each request.
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count(self, caller: str) -> None:
        """Count a request of a caller. Raises :class:`TooMany`."""
        if not self._limiter.hit(self._rate, "caller", caller):
            raise TooMany(
                f"has sent more than {self._rate}",
                "send less often, or raise BIOBRACKET_QUERY_RATE",
                self._wait(self._rate, "caller", caller),
            )

    @contextmanager
    def under_way(self, caller: str) -> Iterator[None]:
        """While a request of a caller is under way. Raises :class:`TooMany` at once for one too many."""
        if self._under_way[caller] >= self._concurrent:
            raise TooMany(
                f"has {self._concurrent} requests under way, the most allowed",
                "wait for some of them, or raise BIOBRACKET_QUERY_MAX_CALLER_REQUESTS",
                1,
            )
        self._under_way[caller] += 1
        try:
            yield
        finally:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller]

    def failed(self, address: str) -> None:
        """Count a credential that was not accepted. Raises :class:`TooMany`."""
        client = network(address)
        if not self._limiter.hit(self._failures, "failed", client):
            raise TooMany(
                "has sent too many credentials that are not accepted",
                "correct the API key or token, then wait",
                self._wait(self._failures, "failed", client),
            )

    def _wait(self, item: limits.RateLimitItem, *names: str) -> int:
        return max(1, math.ceil(self._limiter.get_window_stats(item, *names).reset_time - time.time()))


def network(address: str) -> str:
    """What counts as one client: an IPv4 address, of IPv6 a network of 64 bits, as one host may have all of it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))
    return str(parsed)
