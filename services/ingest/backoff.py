"""How long to wait before trying again."""

from __future__ import annotations

import random


class Backoff:
    """Exponential, capped, with "equal jitter": half of each wait is random, so that replicas do not retry in step.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, at least one."""
        full = min(self._longest_s, self._first_s * 2.0 ** min(failures - 1, 30))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
