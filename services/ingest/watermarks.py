"""The contiguous low-water mark of a partition: what may be committed while records finish in any order."""

from __future__ import annotations

from collections import deque


class Watermark:
    """Records of one partition between being read and being done.

    Offsets may have gaps, which compaction and transactions leave behind: contiguous means without an unfinished
    record before it, not without a missing number.
    """

    def __init__(self, offset: int) -> None:
        """``offset`` is that of the first record to come."""
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._next = offset

    @property
    def next(self) -> int:
        """The lowest offset that can be added."""
        return self._next

    @property
    def position(self) -> int:
        """The next offset to read after a restart, which is what Kafka commits. It never falls."""
        return self._open[0] if self._open else self._next

    def add(self, offset: int, span: int = 1) -> None:
        """A record that takes ``span`` offsets was read. ValueError where its offset is not above all before."""
        if offset < self._next:
            raise ValueError(f"offset: {offset} comes after {self._next - 1}; add records in the order they were read")
        self._open.append(offset)
        self._next = offset + span

    def done(self, offset: int) -> None:
        """A record is finished; a second time changes nothing."""
        if self._open and offset >= self._open[0]:
            self._done.add(offset)
        while self._open and self._open[0] in self._done:
            self._done.remove(self._open.popleft())
