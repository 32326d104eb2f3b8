"""One consumer of a group."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from kafka import KafkaConsumer  # type: ignore[import-untyped]
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener  # type: ignore[import-untyped]
from kafka.errors import KafkaError  # type: ignore[import-untyped]
from kafka.structs import TopicPartition  # type: ignore[import-untyped]

from shared.backends.records import Callback, Partition, Record
from shared.backends.streams.assignor import Assignor
from shared.backends.streams.batches import tolerate_unreadable
from shared.backends.streams.client import (
    COMMIT_MS,
    FETCH_BYTES,
    FETCH_WAIT_MS,
    OVERHEAD_BYTES,
    client_options,
    positions,
    record_of,
    translated,
)
from shared.settings import Settings

# How long a future of `on_revoked` is waited for, and how often it is looked at.
_REVOKE_S = 4.0
_BREATH_S = 0.02
# A member that does not poll for so long is taken for stuck, and its partitions go to others.
# Polls follow each other within seconds. A rebalance waits as long for a member that does not come to it (the embedded
# broker now and then waits for one that has left): less than ingest's `stalled_s`, after which a replica is replaced.
_POLL_MS = 45_000


@dataclass(frozen=True)
class Membership:
    """How a consumer belongs to its group. The defaults suit every broker kind.

    ``session_s``: seconds without a sign of life after which the group takes a member for dead and its partitions go
    to others; Tansu also keeps a joining member waiting for half of it. ``heartbeat_s``: seconds between signs of life;
    at most a third of it. ``instance``: empty, or the name of a static member, of which a group has one at a time: who
    joins under it within ``session_s`` goes on with its predecessor's partitions, and no other member notices.
    """

    session_s: float = 6.0
    heartbeat_s: float = 1.0
    instance: str = ""


class Source:
    """One consumer in a group. Thread-safe; calls that reach the broker wait for a :meth:`poll` in progress.

    The invariant that nothing is lost by, which this class and its user keep together: every offset between a
    partition's committed offset and the client's position is waiting, in flight or done. So whoever drops records that
    are not done has the partition read again from its committed offset: the user by :meth:`rewind`; this class does it
    for what was revoked or lost, before it hands over anything of such a partition again. That rests on no belief about
    what the client does with positions in a rebalance (kafka-python keeps them wherever a partition stays).

    ``on_assigned`` and ``on_revoked`` get the partitions that come and go; of those that stay nothing is told. They run
    on the client's own thread, which also sends heartbeats: they must return within a second. Of this object they may
    call only :meth:`commit`, :meth:`pause`, :meth:`resume`, :meth:`paused` and :meth:`assignment`. What ``on_revoked``
    commits, or a future that it returns, reaches the broker before the partitions go to another member. The future is
    waited for some seconds while heartbeats go on. After a lost session nothing can be committed, and it is dropped.

    A batch that cannot be read in ``attempts`` fetches is handed over as one record with a ``problem``.

    Errors: :class:`StreamError`; of these :class:`Fenced`, after which only :meth:`close` makes sense.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Sequence[str],
        *,
        attempts: int = 1,
        membership: Membership = Membership(),
        on_assigned: Callback | None = None,
        on_revoked: Callback | None = None,
    ) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._listener = _Listener(self, on_assigned, on_revoked)
        self._committed: dict[Partition, int] = {}
        self._given: dict[Partition, int] = {}  # behind the last record that was handed over
        self._dropped: set[Partition] = set()
        with translated(settings):
            self._consumer: Any = KafkaConsumer(
                **client_options(settings),
                group_id=group,
                partition_assignment_strategy=(self._listener.assignor,),
                isolation_level=settings.kafka_isolation,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
                group_instance_id=membership.instance or None,
                session_timeout_ms=int(membership.session_s * 1000),
                heartbeat_interval_ms=int(membership.heartbeat_s * 1000),
                max_poll_interval_ms=_POLL_MS,
                fetch_max_wait_ms=FETCH_WAIT_MS,
                fetch_max_bytes=max(FETCH_BYTES, settings.max_message_bytes + OVERHEAD_BYTES),
                max_partition_fetch_bytes=settings.max_message_bytes + OVERHEAD_BYTES,
            )
            tolerate_unreadable(self._consumer, attempts)
            self._consumer.subscribe(list(topics), listener=self._listener)

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """At most ``max_records`` next records, in order within a partition; empty after ``timeout_s`` without any.

        Must be called again within 45 seconds, else the group gives the partitions to another member.
        """
        records = []
        with self._lock, translated(self._settings):
            self._finish_rejoin()
            self._rewind()
            batches = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
            for place, batch in batches.items():
                partition = (place.topic, place.partition)
                if partition in self._dropped:  # it went and came back within this poll: rewound by the next one
                    continue
                self._committed.setdefault(partition, batch[0].offset)
                records += [record_of(self._consumer, place, each) for each in batch]
                self._given[partition] = records[-1].offset + records[-1].span
        return records

    def rewind(self, partitions: Iterable[Partition]) -> None:
        """Reads these partitions again from their committed offsets: records that were handed over were dropped."""
        self._dropped.update(partitions)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Reads no more of these partitions until :meth:`resume`. Partitions that went away are passed over."""
        self._consumer.pause(*self._assigned(partitions))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Reads these partitions again. Partitions that went away are passed over."""
        self._consumer.resume(*self._assigned(partitions))

    def paused(self) -> set[Partition]:
        """The paused partitions."""
        return {(p.topic, p.partition) for p in self._consumer.paused()}

    def assignment(self) -> set[Partition]:
        """The partitions this consumer reads; empty until the group has settled, which takes :meth:`poll`."""
        return {(p.topic, p.partition) for p in self._consumer.assignment() or ()}

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commits the next offset to read of each partition, and returns when the broker has it.

        Partitions that went away are passed over: who has them now reads their records again. Where all that was handed
        over is committed, what nobody is given goes with it: ends of transactions, aborted and expired records.
        :class:`Rebalancing` while the group rebalances.
        """
        if self._listener.running():
            self._listener.pending.update(offsets)
            return
        with self._lock, translated(self._settings):
            assigned = self.assignment()
            mine = {partition: offset for partition, offset in offsets.items() if partition in assigned}
            for partition in assigned - self._dropped:
                offset = mine.get(partition, self._committed.get(partition, 0))
                behind = self._position(TopicPartition(*partition))
                if behind is not None and self._given.get(partition, offset) <= offset < behind:
                    mine[partition] = behind
            if mine:
                self._consumer.commit(positions(mine), timeout_ms=COMMIT_MS)
                self._committed.update(mine)

    def lag(self, *, committed: bool = False) -> int:
        """Records of the assignment that are not yet read, or with ``committed`` not yet committed.

        From the newest fetch of each partition: 0 before the first one, and old while a partition is paused.
        """
        total = 0
        with self._lock, translated(self._settings):
            for partition in self._consumer.assignment() or ():
                try:
                    end = self._consumer.highwater(partition)
                except KeyError:  # revoked meanwhile
                    continue
                position = None if end is None else self._position(partition)
                if end is None or position is None:
                    continue
                if committed:
                    position = self._committed.get((partition.topic, partition.partition), position)
                total += max(0, end - position)
        return total

    def close(self) -> None:
        """Leaves the group, so that others take over at once; ``on_revoked`` is called and may commit.

        A static member's place is kept for it: others take over after its session.
        """
        with self._lock, translated(self._settings):
            self._consumer.close(autocommit=False, timeout_ms=COMMIT_MS)

    def _position(self, partition: Any) -> int | None:
        """The next offset to hand over; None where it is not known, or the partition went away."""
        try:
            position: int | None = self._consumer.position(partition, timeout_ms=0)
        except (KafkaError, KeyError, AssertionError):
            return None
        return position

    def _assigned(self, partitions: Iterable[Partition]) -> list[Any]:
        assigned = self._consumer.assignment() or set()
        return [p for p in (TopicPartition(*partition) for partition in partitions) if p in assigned]

    def _finish_rejoin(self) -> None:
        """Goes on with a rejoin that the last poll was too short for.

        kafka-python forgets one that only changed metadata called for: this member, as the leader, would get no
        partitions, and send no heartbeats, for good.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001
        if coordinator.rebalance_in_progress():
            coordinator.request_rejoin()

    def _rewind(self) -> None:
        assigned = self.assignment()
        for partition in sorted(self._dropped):
            if partition in assigned:
                place = TopicPartition(*partition)
                # Asked of the broker, since a commit may have failed, or succeeded though its answer was lost.
                committed = self._consumer.committed(place, timeout_ms=COMMIT_MS)
                if committed is None:
                    self._consumer.seek_to_beginning(place)
                else:
                    self._consumer.seek(place, committed)
                self._given.pop(partition, None)
                self._committed.pop(partition, None)
            # One that is not assigned starts at its committed offset wherever it is read next.
            self._dropped.discard(partition)

    def _forget(self, partitions: set[Partition]) -> None:
        self._dropped |= partitions
        for partition in partitions:
            self._committed.pop(partition, None)
            self._given.pop(partition, None)

    async def _breathe(self) -> None:
        """Lets the client's loop do other things, such as heartbeats."""
        await self._consumer._net.sleep(_BREATH_S)  # noqa: SLF001 - the loop is kafka-python's own, not asyncio's

    async def _commit_soon(self, offsets: Mapping[Partition, int]) -> None:
        try:
            await self._consumer.commit_async(positions(offsets))
        except KafkaError:
            # Not committed means read again, which results bear: they are idempotent.
            return


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Rebalance callbacks. They run on the client's loop, where a blocking commit is impossible: it is awaited here."""

    def __init__(self, source: Source, on_assigned: Callback | None, on_revoked: Callback | None) -> None:
        self._source = source
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._thread: int | None = None
        self.assignor = Assignor()
        self.pending: dict[Partition, int] = {}

    def running(self) -> bool:
        """Whether the caller is inside a callback."""
        return self._thread == threading.get_ident()

    async def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        self._call(self._on_assigned, assigned)
        await self._flush()

    async def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        offsets = self._call(self._on_revoked, revoked)
        if offsets is not None:
            deadline = time.monotonic() + _REVOKE_S
            while not offsets.done() and time.monotonic() < deadline:
                await self._source._breathe()  # noqa: SLF001
            if offsets.done() and not offsets.cancelled() and offsets.exception() is None:
                self.pending.update(offsets.result())
        await self._flush()
        self._source._forget({(p.topic, p.partition) for p in revoked})  # noqa: SLF001 - two halves of one thing

    async def on_partitions_lost(self, lost: Collection[Any]) -> None:
        self._call(self._on_revoked, lost)
        self.pending.clear()
        self.assignor.forget()
        self._source._forget({(p.topic, p.partition) for p in lost})  # noqa: SLF001

    def _call(self, callback: Callback | None, partitions: Collection[Any]) -> Future[dict[Partition, int]] | None:
        if callback is None or not partitions:
            return None
        self._thread = threading.get_ident()
        try:
            return callback({(p.topic, p.partition) for p in partitions})
        finally:
            self._thread = None

    async def _flush(self) -> None:
        if self.pending:
            offsets, self.pending = self.pending, {}
            await self._source._commit_soon(offsets)  # noqa: SLF001
