"""Which document kills the process that works on it.

When a process dies, everything that it had in hand is a suspect. Suspects are tried again in groups, one after another
and with nothing else in flight. A group that comes through is cleared; of one in which a process died again, those that
it had in hand are split in two. So one culprit among n costs about log2(n) deaths before it is alone.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

W = TypeVar("W")


class Suspects(Generic[W]):
    """The suspects of one consumer; all of it belongs to one event loop. ``W`` is compared by identity."""

    def __init__(self, attempts: int) -> None:
        """``attempts``: deaths after which a document that is alone is guilty."""
        self._attempts = attempts
        self._groups: deque[list[W]] = deque()
        self._died: list[W] = []  # since the running group began
        self._deaths: Counter[W] = Counter()
        self._alone: W | None = None
        self._active = False

    def __bool__(self) -> bool:
        """Whether suspects are being tried; then nothing else may start."""
        return self._active

    def __iter__(self) -> Iterator[W]:
        """Those that wait for their turn."""
        yield from self._died
        for group in self._groups:
            yield from group

    def add(self, work: W) -> None:
        """A process died with this work in hand."""
        self._active = True
        self._deaths[work] += 1
        self._died.append(work)

    def guilty(self, work: W) -> bool:
        """Whether one more death with this work in hand proves it guilty: it is alone, and it was there each time."""
        return work is self._alone and self._deaths[work] + 1 >= self._attempts

    def take(self) -> list[W]:
        """The next group to try, once nothing is in flight; empty where nobody is suspected any more."""
        died, self._died = self._died, []
        half = (len(died) + 1) // 2
        for part in (died[half:], died[:half]):
            if part:
                self._groups.appendleft(part)
        group = self._groups.popleft() if self._groups else []
        self._alone = group[0] if len(group) == 1 else None
        if not group:
            self._active = False
            self._deaths.clear()
        return group

    def drop(self, gone: Callable[[W], bool]) -> None:
        """Forgets works that are another consumer's now."""
        self._died = [work for work in self._died if not gone(work)]
        self._groups = deque(kept for group in self._groups if (kept := [work for work in group if not gone(work)]))
