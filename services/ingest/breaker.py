"""Stops consumption when too much goes to the dead letters: a producer or a deployment is broken, not a document.

The limits are those of arroyo's ``DlqLimit``: a run of dead letters, and a share
(https://getsentry.github.io/arroyo/dlqs.html).
"""

from __future__ import annotations

from collections import deque

# The share is that of so many last records.
WINDOW = 1000


class Breaker:
    """Counts of one consumer. What is open stays so until somebody closes it."""

    def __init__(self, run: int, share: float) -> None:
        """``run``: dead letters in a row; ``share``: of the last thousand records. 0 turns a limit off."""
        self._run = run
        self._share = share
        self.reset()

    def reset(self) -> None:
        """Begins to count anew."""
        self._in_a_row = 0
        self._last: deque[bool] = deque(maxlen=WINDOW)
        self._dead = 0

    def count(self, *, dead: bool) -> str | None:
        """Counts a record that is done; why to stop, if it is time to."""
        self._in_a_row = self._in_a_row + 1 if dead else 0
        if len(self._last) == WINDOW:
            self._dead -= self._last[0]
        self._last.append(dead)
        self._dead += dead
        if self._run and self._in_a_row >= self._run:
            return f"{self._in_a_row} records in a row went to the dead letters"
        if self._share and len(self._last) == WINDOW and self._dead > self._share * WINDOW:
            return f"{self._dead} of the last {WINDOW} records went to the dead letters"
        return None
