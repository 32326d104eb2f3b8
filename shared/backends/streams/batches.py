"""Batches that cannot be read: each becomes one record, so that a stream goes on behind it.

What a broker does with noise on its disk depends on where that lies (Apache Kafka 4.1, as the tests show it):

- in the records, or in what the checksum covers: it hands the batch over, and only its reader can tell;
- in the batch's length: it cannot find what lies behind, and answers with CORRUPT_MESSAGE, or with nothing at all and
  no error, as at the end of the log;
- in the format's number: UNKNOWN_SERVER_ERROR, or INVALID_RECORD;
- in the batch's offset or its leader's epoch, which the checksum leaves out: it hands over records under other offsets.

kafka-python (3.0.12) trusts all of it: it raises, for good; or polls for good; or takes the offsets as they come, and
goes on where they say. And where a batch has a wrong checksum or a codec that it does not know, its next poll never
returns: it asks an iterator that has ended for more, over and over (``Fetcher.fetched_records``).

Here no field of a batch is believed before its checksum, its place among its neighbours and the end of the partition
agree with it. Where that leaves no place to go on at, the broker is asked for one offset after the other until it has
something: its index has an entry every few kilobytes, and what it finds by one can be read. Meanwhile the client's
position stays, and so nothing is committed that nobody has seen.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from kafka.consumer.fetcher import Fetcher  # type: ignore[import-untyped]
from kafka.errors import (  # type: ignore[import-untyped]
    CorruptRecordError,
    InvalidRecordError,
    NoError,
    OffsetOutOfRangeError,
    RequestTimedOutError,
    UnknownError,
    UnsupportedCodecError,
)
from kafka.protocol.consumer import IsolationLevel  # type: ignore[import-untyped]
from kafka.record.default_records import DefaultRecordBatch  # type: ignore[import-untyped]
from kafka.record.legacy_records import LegacyRecordBatch  # type: ignore[import-untyped]
from kafka.structs import TopicPartition  # type: ignore[import-untyped]

from shared.backends.records import Problem
from shared.backends.streams.client import OVERHEAD_BYTES

# What a broker that hands over no bytes is asked at the least, before it is believed that it has none.
_ASKS = 5
_BROKEN = (CorruptRecordError.errno, InvalidRecordError.errno, UnknownError.errno)
_LENGTH_AT, _MAGIC_AT = 8, 16
_FRAME_BYTES, _LEAST_BYTES, _HEADER_BYTES = 12, 26, 61  # offset and length; the least batch; what its records follow


@dataclass(frozen=True, slots=True)
class UnreadableBatch:
    """In place of the records of a batch that cannot be read, or of the rest of them.

    ``value``: the batch's bytes as far as they are known; none where the broker cannot hand them over. Then ``span``
    reaches as far as it has nothing that it can.
    """

    offset: int
    span: int
    problem: Problem
    timestamp: int
    value: bytes
    key: None = None
    headers: tuple[()] = ()


def tolerate_unreadable(consumer: Any, attempts: int) -> None:
    """Makes a consumer fetch what it cannot read ``attempts`` times, then hand over an :class:`UnreadableBatch`."""
    fetcher = consumer._fetcher  # noqa: SLF001
    fetcher.__class__ = _Fetcher  # the consumer makes its own
    longest = consumer.config["max_partition_fetch_bytes"] - OVERHEAD_BYTES // 2
    fetcher.places = Places(attempts, longest, fetcher._manager.cluster.leader_epoch_for_partition)  # noqa: SLF001
    fetcher.PartitionRecords = partial(_PartitionRecords, fetcher.places)


@dataclass(slots=True)
class _Gap:
    """An offset at which a partition cannot be read."""

    start: int
    tries: int = 0
    # How much further on the next fetch asks; 0: at the offset itself.
    ahead: int = 0
    # Where something was found that can be read; believed once the offset itself has failed again.
    found: int = 0
    value: bytes = b""


class Places:
    """What is known of where each partition can be read. ``newest`` tells a partition's leader epoch, if it is known.

    ``longest``: how many bytes of a batch are kept at the most.
    """

    def __init__(self, attempts: int, longest: int, newest: Callable[[Any], int | None]) -> None:
        self.attempts = attempts
        self.longest = longest
        # Behind what a reader is given: the high-water mark, or the last stable offset.
        self.ends: dict[Any, int] = {}
        # Where the last batch ended that was read to its end: the next one does not begin before.
        self.edges: dict[Any, int] = {}
        self.gaps: dict[Any, _Gap] = {}
        self._newest = newest
        self._epochs: dict[Any, int] = {}

    def gap(self, partition: Any, offset: int) -> _Gap | None:
        """That at this offset; one elsewhere is past, since the position moved."""
        found = self.gaps.get(partition)
        return found if found is not None and found.start == offset else None

    def asked(self, partition: Any, offset: int) -> int:
        """The offset that the broker is asked for, for what is at ``offset``."""
        gap = self.gap(partition, offset)
        return offset if gap is None else offset + gap.ahead

    def failed(self, partition: Any, offset: int, limit: int, value: bytes = b"") -> bool:
        """Counts that nothing could be read there. False where that holds of all behind it, too: there is no way on."""
        gap = self.gap(partition, offset) or _Gap(offset)
        self.gaps[partition] = gap
        if gap.ahead == 0:
            gap.tries += 1
            gap.value = value or gap.value
            if gap.tries >= limit:
                gap.ahead = gap.found or 1
        else:
            gap.ahead, gap.found = gap.ahead + 1, 0
        if offset + gap.ahead > self.ends.get(partition, offset + gap.ahead):
            del self.gaps[partition]
            return False
        return True

    def last(self, partition: Any, offset: int) -> bool:
        """Counts a failure of what has a known end; whether there was the last attempt."""
        gap = self.gap(partition, offset) or _Gap(offset)
        self.gaps[partition] = gap
        gap.tries += 1
        return gap.tries >= self.attempts

    def confirmed(self, partition: Any, gap: _Gap) -> bool:
        """Whether the offset has failed again since something was found behind it; else it is tried once more."""
        if gap.found == gap.ahead:
            del self.gaps[partition]
            return True
        gap.found, gap.ahead = gap.ahead, 0
        return False

    def epoch(self, partition: Any, told: int) -> int:
        """A batch's leader epoch, or -1 if it cannot be right: a broker would take the position for truncated."""
        newest = self._newest(partition)
        if newest is None or not self._epochs.get(partition, 0) <= told <= newest:
            return -1
        self._epochs[partition] = told
        return told


class _Fetcher(Fetcher):  # type: ignore[misc]
    """Asks a broker again, and elsewhere, for what it cannot hand over."""

    places: Places

    def _create_fetch_requests(self) -> Any:
        for partition in list(self.places.gaps):
            for session in self._session_handlers.values():
                session.session_partitions.pop(partition, None)  # else it is not asked for what it was before
        requests = super()._create_fetch_requests()
        for request, _ in requests.values():
            for topic in request.topics:
                for asked in topic.partitions:
                    gap = self.places.gap(TopicPartition(topic.topic, asked.partition), asked.fetch_offset)
                    if gap is not None and gap.ahead:
                        asked.fetch_offset += gap.ahead
                        asked.last_fetched_epoch = -1  # what was read last lies elsewhere
        return requests

    def _handle_fetch_response(self, node_id: Any, fetch_offsets: Any, send_time: Any, response: Any) -> None:
        told = {TopicPartition(t.topic, p.partition_index): p for t in response.responses for p in t.partitions}
        # One with records may have had no room for more; else the broker has sent all that it has.
        bare = not response.throttle_time_ms and not any(part.records for part in told.values())
        untold = False
        for partition, offset in fetch_offsets.items() if bare else ():
            part, asked = told.get(partition), self.places.asked(partition, offset)
            if part is None:
                untold |= asked > offset or asked < self.places.ends.get(partition, 0)
            elif part.error_code == NoError.errno and asked < self._end(part):
                part.error_code = CorruptRecordError.errno
        super()._handle_fetch_response(node_id, fetch_offsets, send_time, response)
        if untold and node_id in self._session_handlers:
            # In a session a broker leaves out what it has nothing new of: the next fetch begins one anew.
            self._session_handlers[node_id].handle_error(None)

    def _parse_fetched_data(self, completed_fetch: Any) -> Any:
        partition, offset = completed_fetch.topic_partition, completed_fetch.fetched_offset
        part = completed_fetch.partition_data
        if part.error_code == NoError.errno:
            self.places.ends[partition] = self._end(part)
        elif self._subscriptions.is_fetchable(partition) and self._subscriptions.position(partition).offset == offset:
            if part.error_code == OffsetOutOfRangeError.errno and self.places.asked(partition, offset) > offset:
                del self.places.gaps[partition]
                part.error_code = CorruptRecordError.errno
            elif part.error_code in _BROKEN and self.places.failed(partition, offset, max(self.places.attempts, _ASKS)):
                part.error_code = RequestTimedOutError.errno  # one after which the client fetches again
        return super()._parse_fetched_data(completed_fetch)

    def _end(self, part: Any) -> int:
        stable: int = part.last_stable_offset
        if self._isolation_level == IsolationLevel.READ_COMMITTED and stable >= 0:
            return stable
        return int(part.high_watermark)


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of a partition, read batch by batch."""

    next_fetch_offset: int

    def __init__(self, places: Places, *args: Any, **options: Any) -> None:
        self._places = places
        self._keep = False
        super().__init__(*args, **options)
        self.check_crcs = False  # :func:`_batch` does

    @property
    def leader_epoch(self) -> int:
        return self._epoch

    @leader_epoch.setter
    def leader_epoch(self, told: int) -> None:
        self._epoch = told if told < 0 else self._places.epoch(self.topic_partition, told)

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
        places = self._places
        pieces = ((raw, _batch(raw)) for raw in _pieces(records._buffer))  # noqa: SLF001
        piece = next(pieces, None)
        if (gap := places.gap(tp, self.fetch_offset)) is not None and gap.ahead:
            behind = self._found(piece, gap)
            if behind is None:
                piece = None
            elif behind > gap.start:
                self.next_fetch_offset = behind
                value = gap.value if piece is None else gap.value.partition(bytes(piece[0][:_HEADER_BYTES]))[0]
                yield UnreadableBatch(gap.start, behind - gap.start, "corrupt", -1, value)
        known = places.edges.get(tp) == self.next_fetch_offset
        first = True
        while piece is not None:
            (raw, batch), piece = piece, next(pieces, None)
            leads, first = first, False
            start = self.next_fetch_offset
            following = piece[1] if piece is not None and self._lies(piece[1], start + 1, known=True) else None
            problem: Problem = "corrupt"
            if not self._lies(batch, start, known=known or not leads) or (
                following is not None and batch.magic == 2 and batch.next_offset > following.base_offset
            ):
                if following is None:
                    places.failed(tp, start, places.attempts, bytes(raw[: places.longest]))
                    break
                behind = following.base_offset
            elif not leads and piece is None and batch.magic == 2 and batch.base_offset > start:
                break  # whether it lies so far on is seen where it comes first, and others after it
            else:
                if (
                    leads
                    and batch.magic == 2
                    and batch.base_offset > start
                    and (gap := places.gap(tp, start)) is not None
                ):
                    # What was wrong there is left out now: the broker takes it for one of earlier offsets.
                    self.next_fetch_offset = batch.base_offset
                    yield UnreadableBatch(start, batch.base_offset - start, "corrupt", -1, gap.value)
                try:
                    yield from super()._unpack_records(tp, _Single(batch, self), *deserializers)
                    places.edges[tp] = self.next_fetch_offset
                    continue
                except Exception as error:  # each codec has errors of its own
                    # Records of it that could be read were handed over.
                    start = max(batch.base_offset, start, self.next_fetch_offset)
                    behind = batch.next_offset if batch.magic == 2 else start + 1
                    if start >= behind:
                        continue
                    if isinstance(error, UnsupportedCodecError):
                        problem = "codec"
            if not places.last(tp, start):
                break
            places.edges[tp] = self.next_fetch_offset = behind
            time = batch.max_timestamp if batch is not None and batch.magic == 2 else -1
            yield UnreadableBatch(start, behind - start, problem, time, bytes(raw[: places.longest]))
        self.drain()

    def _found(self, piece: tuple[memoryview, Any] | None, gap: _Gap) -> int | None:
        """Where there is something to read behind a gap, once it is certain: a batch, or the end; else None."""
        places, tp = self._places, self.topic_partition
        asked = gap.start + gap.ahead
        if piece is not None:
            batch = piece[1]
            if not self._lies(batch, gap.start, known=places.edges.get(tp) == gap.start):
                places.failed(tp, gap.start, places.attempts)
                return None
            behind: int = batch.base_offset if batch.magic == 2 else asked
        elif asked < places.ends[tp]:
            return None
        else:
            behind = asked
        return behind if places.confirmed(tp, gap) else None

    def _lies(self, batch: Any, start: int, *, known: bool) -> bool:
        """Whether a batch can lie at an offset; ``known``: that one begins there, or further on."""
        if batch is None or batch.magic < 2:
            return batch is not None
        if batch.base_offset < start:
            return not known and batch.next_offset > start
        return bool(batch.base_offset == start or batch.next_offset <= self._places.ends[self.topic_partition])


def _pieces(buffer: bytes) -> Iterator[memoryview]:
    """The bytes of each batch; of one with a wrong length, all that is left. One that is cut off is left out."""
    rest = memoryview(buffer or b"")
    first = True
    while len(rest) >= _FRAME_BYTES:
        size = _FRAME_BYTES + int.from_bytes(rest[_LENGTH_AT:_FRAME_BYTES], "big", signed=True)
        if size < _LEAST_BYTES or size > len(rest):
            if size < _LEAST_BYTES or first:  # a broker sends the first one whole
                yield rest
            return
        yield rest[:size]
        rest, first = rest[size:], False


def _batch(raw: memoryview) -> Any:
    """A batch with a right checksum, or None."""
    try:
        magic = raw[_MAGIC_AT]
        batch = DefaultRecordBatch(raw) if magic == 2 else LegacyRecordBatch(raw, magic) if magic < 2 else None
        return batch if batch is not None and batch.validate_crc() else None
    except (AssertionError, IndexError, ValueError, struct.error):  # too short for its format
        return None


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
