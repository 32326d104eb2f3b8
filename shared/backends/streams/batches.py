"""Batches that cannot be read: each becomes one record, so that a stream goes on behind it.

kafka-python raises at a batch with a wrong checksum or a codec that it does not know, and its next poll never returns:
it asks an iterator that has ended for more, over and over (3.0.12, ``Fetcher.fetched_records``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from kafka.consumer.fetcher import Fetcher  # type: ignore[import-untyped]
from kafka.errors import UnsupportedCodecError  # type: ignore[import-untyped]

from shared.backends.records import Problem


@dataclass(frozen=True, slots=True)
class UnreadableBatch:
    """In place of the records of a batch that cannot be read, or of the rest of them; ``value`` is the whole batch."""

    offset: int
    span: int
    problem: Problem
    timestamp: int
    value: bytes
    key: None = None
    headers: tuple[()] = ()


def tolerate_unreadable(consumer: Any, attempts: int) -> None:
    """Makes a consumer fetch what it cannot read ``attempts`` times, then hand over an :class:`UnreadableBatch`."""
    consumer._fetcher.PartitionRecords = partial(_PartitionRecords, _Failures(attempts))  # noqa: SLF001


class _Failures:
    """How often the batch that each partition is at could not be read."""

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._counts: dict[Any, tuple[int, int]] = {}

    def last(self, partition: Any, offset: int) -> bool:
        """Counts a failure; whether there was the last attempt."""
        before, count = self._counts.get(partition, (offset, 0))
        count = count + 1 if before == offset else 1
        self._counts[partition] = (offset, count)
        return count >= self._attempts


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of a partition, read batch by batch."""

    next_fetch_offset: int

    def __init__(self, failures: _Failures, *args: Any, **options: Any) -> None:
        self._failures = failures
        self._keep = False
        super().__init__(*args, **options)

    def take(self, n: int | None = None) -> list[Any]:
        try:
            taken: list[Any] = super().take(n)
        except Exception:
            self.drain()  # its iterator has ended: the next poll is to fetch again
            raise
        return taken

    def drain(self) -> None:
        if not self._keep:
            super().drain()
        self._keep = False

    def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
        while records.has_next():
            raw = records._next_slice  # noqa: SLF001 - the batch replaces its own bytes when it decompresses them
            batch = records.next_batch()
            try:
                yield from super()._unpack_records(tp, _Single(batch, self), *deserializers)
            except Exception as error:  # each codec has errors of its own
                # Records of it that could be read were handed over.
                start = max(batch.base_offset, self.next_fetch_offset)
                behind = batch.next_offset if batch.magic == 2 else start + 1
                if start >= behind:
                    continue
                if not self._failures.last(tp, start):
                    break
                self.next_fetch_offset = behind
                yield UnreadableBatch(
                    offset=start,
                    span=behind - start,
                    problem="codec" if isinstance(error, UnsupportedCodecError) else "corrupt",
                    timestamp=batch.max_timestamp if batch.magic == 2 else -1,
                    value=bytes(raw),
                )
        self.drain()


class _Single:
    """One batch, as the base reads several of; it drains when they end, which is to wait for the last."""

    def __init__(self, batch: Any, reader: _PartitionRecords) -> None:
        self._batch = batch
        self._reader = reader

    def next_batch(self) -> Any:
        batch, self._batch = self._batch, None
        if batch is None:
            self._reader._keep = True  # noqa: SLF001
        return batch
