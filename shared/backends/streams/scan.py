"""Topics read from outside any group, and the lag of a group."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer  # type: ignore[import-untyped]
from kafka.errors import CoordinatorNotAvailableError  # type: ignore[import-untyped]
from kafka.structs import TopicPartition  # type: ignore[import-untyped]

from shared.backends.records import Record
from shared.backends.streams.batches import tolerate_unreadable
from shared.backends.streams.client import (
    CONNECT_MS,
    FETCH_BYTES,
    FETCH_WAIT_MS,
    OVERHEAD_BYTES,
    client_options,
    record_of,
    translated,
)
from shared.errors import StreamError
from shared.settings import Settings

_LAG_S = 2.0
# A broker that gives nothing for so long, though there is something, is not waited for any longer.
_STUCK_S = 60.0


def _group_offsets(admin: Any, group: str) -> Any:
    deadline = time.monotonic() + CONNECT_MS / 1000
    while True:
        try:
            return admin.list_group_offsets(group).get(group, {})
        except CoordinatorNotAvailableError:  # the first group of a cluster: Kafka creates the offsets topic
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Lag:
    """How far a group is behind on a topic, seen from outside the group, whoever its members are. Not thread-safe.

    Fetches what is new, since a fetch is what tells where a partition ends. StreamError.
    """

    def __init__(self, settings: Settings, group: str, topic: str) -> None:
        self._settings = settings
        self._group = group
        with translated(settings), ExitStack() as opened:
            self._admin: Any = KafkaAdminClient(**client_options(settings))
            opened.callback(self._admin.close)
            self._consumer: Any = KafkaConsumer(
                **client_options(settings), enable_auto_commit=False, fetch_max_wait_ms=FETCH_WAIT_MS
            )
            opened.callback(self._consumer.close, autocommit=False)
            tolerate_unreadable(self._consumer, 1)
            self._partitions = [TopicPartition(topic, p) for p in self._consumer.partitions_for_topic(topic) or ()]
            self._consumer.assign(self._partitions)
            opened.pop_all()

    def read(self) -> int:
        """Records that the group has not committed yet; a partition it never committed counts from its start."""
        with translated(self._settings):
            committed = _group_offsets(self._admin, self._group)
            starts = {p: committed[p].offset if p in committed else 0 for p in self._partitions}
            for partition, start in starts.items():
                self._consumer.seek(partition, max(start, self._consumer.highwater(partition) or 0))
            ends: dict[Any, int | None] = {}
            deadline = time.monotonic() + _LAG_S
            while time.monotonic() < deadline:
                fetched = self._consumer.poll(timeout_ms=2 * FETCH_WAIT_MS)
                ends = {p: self._consumer.highwater(p) for p in self._partitions}
                if not fetched and None not in ends.values():
                    break
            return sum(max(0, (end or 0) - starts[p]) for p, end in ends.items())

    def close(self) -> None:
        """Lets go of the broker."""
        with translated(self._settings):
            self._consumer.close(autocommit=False)
            self._admin.close()


class Scan:
    """Reads a topic from outside any group, from a time on and as far as is wanted. Not thread-safe.

    Ends come from fetches, as for :class:`Lag`. StreamError.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._starts: dict[Any, int] = {}
        self._ends: dict[Any, int] = {}
        self._positions: dict[Any, int] = {}
        self._consumer: Any = None
        with translated(settings), ExitStack() as opened:
            self._admin: Any = KafkaAdminClient(**client_options(settings))
            opened.callback(self._admin.close)
            consumer = self._connect()
            try:
                self._partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
            finally:
                consumer.close(autocommit=False)
            if not self._partitions:
                raise StreamError(
                    f"kafka: {settings.kafka} has no topic {topic} that this user may see; correct the "
                    "BIOBRACKET_TOPIC_ settings, or have the rules added that `biobracket access kafka` lists",
                    retryable=False,
                )
            opened.pop_all()

    def committed(self, group: str) -> dict[int, int]:
        """The committed offset by partition; one that the group never committed is left out."""
        with translated(self._settings):
            found = _group_offsets(self._admin, group)
            return {p.partition: found[p].offset for p in self._partitions if p in found and found[p].offset >= 0}

    def read(self, until: Mapping[int, int] | None = None, *, since_ms: int = 0) -> Iterator[list[Record]]:
        """The records of each fetch, maybe none; in order within a partition.

        ``until``: the offset to stop before, by partition, others are left out; without it the end as it is when
        reading starts. ``since_ms``: milliseconds since 1970; records that are older are left out.
        """
        wanted = [p for p in self._partitions if until is None or until.get(p.partition, 0) > 0]
        with translated(self._settings):
            # A new one each time: of a partition that it read before, a client goes on with what it knew of its end.
            self._disconnect()
            self._consumer = self._connect()
            starts = self._consumer.beginning_offsets(wanted)
            if since_ms:
                found = self._consumer.offsets_for_times(dict.fromkeys(wanted, since_ms))
                starts = {p: max(starts[p], found[p].offset) for p in wanted if found.get(p) is not None}
            self._starts, self._positions, self._ends = starts, dict(starts), {}
            self._consumer.assign(list(starts))
            for partition, start in starts.items():
                self._consumer.seek(partition, start)
        open_ = set(starts)
        stuck = time.monotonic() + _STUCK_S
        while open_:
            records: list[Record] = []
            with translated(self._settings):
                fetched = self._consumer.poll(timeout_ms=5 * FETCH_WAIT_MS)
                for partition, batch in fetched.items():
                    if partition in open_:
                        end = self._end(partition, until)
                        kept = [each for each in batch if end is None or each.offset < end]
                        records += [record_of(self._consumer, partition, each) for each in kept]
                before = dict(self._positions)
                for partition in list(open_):
                    end, position = self._end(partition, until), self._consumer.position(partition, timeout_ms=1000)
                    if position is not None:
                        self._positions[partition] = position
                    if end is not None and position is not None and position >= end:
                        open_.remove(partition)
                        self._consumer.pause(partition)
            if fetched or self._positions != before:
                stuck = time.monotonic() + _STUCK_S
            elif time.monotonic() > stuck:
                raise StreamError(
                    f"kafka: {self._settings.kafka} gives no more of {self._topic}; see that its brokers run, and "
                    "begin again",
                    retryable=True,
                )
            yield [record for record in records if record.timestamp_ms >= since_ms]

    def progress(self) -> tuple[int, int]:
        """Offsets that the reading under way has passed, and has to pass, as far as is known."""
        passed = sum(min(self._positions[p], end) - self._starts[p] for p, end in self._ends.items())
        return max(0, passed), max(0, sum(end - self._starts[p] for p, end in self._ends.items()))

    def close(self) -> None:
        """Lets go of the broker."""
        with translated(self._settings):
            self._disconnect()
            self._admin.close()

    def _connect(self) -> Any:
        consumer = KafkaConsumer(
            **client_options(self._settings),
            isolation_level=self._settings.kafka_isolation,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=max(FETCH_BYTES, self._settings.max_message_bytes + OVERHEAD_BYTES),
            max_partition_fetch_bytes=self._settings.max_message_bytes + OVERHEAD_BYTES,
        )
        tolerate_unreadable(consumer, 1)
        return consumer

    def _disconnect(self) -> None:
        if self._consumer is not None:
            self._consumer.close(autocommit=False)
            self._consumer = None

    def _end(self, partition: Any, until: Mapping[int, int] | None) -> int | None:
        """Where to stop, from the first fetch on: what comes after that is not waited for."""
        if partition not in self._ends:
            high = self._consumer.highwater(partition)
            if high is None:
                return None
            self._ends[partition] = high if until is None else min(until[partition.partition], high)
        return self._ends[partition]
