"""Kafka: one consumer of a group, a producer, the topics, and what a dead letter carries.

Targets are Apache Kafka and the embedded broker (Tansu). Some habits serve both. Offsets are committed by hand only.
Partitions are assigned cooperatively, so that a rebalance leaves alone what stays (KIP-429).
Lag comes from the high-water marks that fetches report, since Tansu answers ListOffsets with wrong end offsets; for
the same reason a group without offsets starts at the earliest record. Nothing rests on transactions or static
membership, which Tansu lacks: delivery is at least once and results are idempotent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer  # type: ignore[import-untyped]
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener  # type: ignore[import-untyped]
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor  # type: ignore[import-untyped]
from kafka.errors import (  # type: ignore[import-untyped]
    CommitFailedError,
    CoordinatorNotAvailableError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    KafkaError,
    MessageSizeTooLargeError,
    RebalanceInProgressError,
    RecordListTooLargeError,
    RetriableError,
    TopicAlreadyExistsError,
    UnknownMemberIdError,
)
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment  # type: ignore[import-untyped]
from kafka.structs import OffsetAndMetadata, TopicPartition  # type: ignore[import-untyped]

from shared.backends.records import Callback, Headers, Partition, Record
from shared.errors import MixedAssignors, Rebalancing, StreamError
from shared.settings import Settings

# kafka-python writes keys and values at DEBUG, which are clinical text.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

# Tansu keeps a joining member waiting for half its session timeout; a dead member's partitions wait for all of it.
_SESSION_MS = 6_000
_HEARTBEAT_MS = 1_000
# How long a future of `on_revoked` is waited for, and how often it is looked at.
_REVOKE_S = 4.0
_BREATH_S = 0.02
# A member that does not poll for so long is taken for stuck, and its partitions go to others.
_POLL_MS = 300_000
# Latency of an idle stream follows this wait with Tansu; Kafka itself answers when there is something. 100 ms costs ten
# empty fetches a second, which are most of what an idle ingest takes of a processor.
_FETCH_WAIT_MS = 100
_LAG_S = 2.0
# A broker that gives nothing for so long, though there is something, is not waited for any longer.
_STUCK_S = 60.0
_CONNECT_MS = 10_000
_COMMIT_MS = 10_000
# What a record gains over its value: key, headers of a dead letter and framing.
_OVERHEAD_BYTES = 64 * 1024
_FETCH_BYTES = 50 * 2**20
_LINGER_MS = 5
_SECURITY = ("security_protocol", "sasl_", "ssl_", "proxy_url", "client_id", "client_rack")
_REBALANCING = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)


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

    Errors: :class:`StreamError`.
    """

    def __init__(
        self,
        settings: Settings,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: Callback | None = None,
        on_revoked: Callback | None = None,
    ) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._listener = _Listener(self, on_assigned, on_revoked)
        self._committed: dict[Partition, int] = {}
        self._dropped: set[Partition] = set()
        with _translated(settings):
            self._consumer: Any = KafkaConsumer(
                **_options(settings),
                group_id=group,
                partition_assignment_strategy=(self._listener.assignor,),
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
                session_timeout_ms=_SESSION_MS,
                heartbeat_interval_ms=_HEARTBEAT_MS,
                max_poll_interval_ms=_POLL_MS,
                fetch_max_wait_ms=_FETCH_WAIT_MS,
                fetch_max_bytes=max(_FETCH_BYTES, settings.max_message_bytes + _OVERHEAD_BYTES),
                max_partition_fetch_bytes=settings.max_message_bytes + _OVERHEAD_BYTES,
            )
            self._consumer.subscribe(list(topics), listener=self._listener)

    def poll(self, timeout_s: float, max_records: int) -> list[Record]:
        """At most ``max_records`` next records, in order within a partition; empty after ``timeout_s`` without any.

        Must be called again within five minutes, else the group gives the partitions to another member.
        """
        with self._lock, _translated(self._settings):
            self._finish_rejoin()
            self._rewind()
            batches = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=max_records)
        records = []
        for (topic, partition), batch in batches.items():
            if (topic, partition) in self._dropped:  # it went and came back within this poll: rewound by the next one
                continue
            self._committed.setdefault((topic, partition), batch[0].offset)
            records += [_record(topic, partition, each) for each in batch]
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

        Partitions that went away are passed over: who has them now reads their records again. :class:`Rebalancing`
        while the group rebalances.
        """
        if self._listener.running():
            self._listener.pending.update(offsets)
            return
        with self._lock, _translated(self._settings):
            assigned = self.assignment()
            mine = {partition: offset for partition, offset in offsets.items() if partition in assigned}
            if mine:
                self._consumer.commit(_positions(mine), timeout_ms=_COMMIT_MS)
                self._committed.update(mine)

    def lag(self, *, committed: bool = False) -> int:
        """Records of the assignment that are not yet read, or with ``committed`` not yet committed.

        From the newest fetch of each partition: 0 before the first one, and old while a partition is paused.
        """
        total = 0
        with self._lock, _translated(self._settings):
            for partition in self._consumer.assignment() or ():
                try:
                    end = self._consumer.highwater(partition)
                    position = None if end is None else self._consumer.position(partition, timeout_ms=0)
                except (KafkaError, KeyError):  # revoked meanwhile
                    continue
                if end is None or position is None:
                    continue
                if committed:
                    position = self._committed.get((partition.topic, partition.partition), position)
                total += max(0, end - position)
        return total

    def close(self) -> None:
        """Leaves the group, so that others take over at once; ``on_revoked`` is called and may commit."""
        with self._lock, _translated(self._settings):
            self._consumer.close(autocommit=False, timeout_ms=_COMMIT_MS)

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
                committed = self._consumer.committed(place, timeout_ms=_COMMIT_MS)
                if committed is None:
                    self._consumer.seek_to_beginning(place)
                else:
                    self._consumer.seek(place, committed)
            # One that is not assigned starts at its committed offset wherever it is read next.
            self._dropped.discard(partition)

    def _forget(self, partitions: set[Partition]) -> None:
        self._dropped |= partitions
        for partition in partitions:
            self._committed.pop(partition, None)

    async def _breathe(self) -> None:
        """Lets the client's loop do other things, such as heartbeats."""
        await self._consumer._net.sleep(_BREATH_S)  # noqa: SLF001 - the loop is kafka-python's own, not asyncio's

    async def _commit_soon(self, offsets: Mapping[Partition, int]) -> None:
        try:
            await self._consumer.commit_async(_positions(offsets))
        except KafkaError:
            # Not committed means read again, which results bear: they are idempotent.
            return


class _Assignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """Cooperative and sticky, topic by topic.

    The base counts the partitions of all topics together: a member that joins could get those of feedback alone, and
    no document.
    """

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, Any]:
        shares: dict[str, dict[str, list[int]]] = {member.member_id: {} for member in members}
        for topic in sorted({topic for member in members for topic in member.metadata.topics}):
            some = [
                SimpleNamespace(member_id=member.member_id, metadata=_of_topic(member.metadata, topic))
                for member in members
                if topic in member.metadata.topics
            ]
            for member, share in super().assign(cluster, some).items():
                if partitions := sorted(place.partition for place in share.partitions()):
                    shares[member][topic] = partitions
        return {
            member: ConsumerProtocolAssignment(self.version, sorted(share.items()), b"")
            for member, share in shares.items()
        }

    def forget(self) -> None:
        """After a lost session nothing is owned.

        The base would claim it in the next round all the same, and what is claimed is given to nobody else: it could
        be read by no member.
        """
        self.member_assignment = None


def _of_topic(metadata: Any, topic: str) -> SimpleNamespace:
    owned = [each for each in getattr(metadata, "owned_partitions", None) or () if each.topic == topic]
    return SimpleNamespace(topics=[topic], owned_partitions=owned, generation_id=metadata.generation_id)


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Rebalance callbacks. They run on the client's loop, where a blocking commit is impossible: it is awaited here."""

    def __init__(self, source: Source, on_assigned: Callback | None, on_revoked: Callback | None) -> None:
        self._source = source
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._thread: int | None = None
        self.assignor = _Assignor()
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


class Sink:
    """A producer: acknowledged by all in-sync replicas, retried without duplicates or reordering. Thread-safe.

    Records of one key go to one partition, in the order they were sent (the same murmur2 hash as Java clients).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with _translated(settings):
            self._producer: Any = KafkaProducer(
                **_options(settings),
                acks="all",
                enable_idempotence=True,
                allow_auto_create_topics=False,
                max_request_size=settings.max_message_bytes + _OVERHEAD_BYTES,
                max_block_ms=_CONNECT_MS,
                linger_ms=_LINGER_MS,
            )

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Future[None]:
        """Hands a record over. The future resolves when the broker acknowledged it, or fails with StreamError.

        A record with neither key nor value, which Kafka knows but the client refuses, is sent with an empty value.
        Waits up to ten seconds where the topic's metadata is not at hand.
        """
        future: Future[None] = Future()
        try:
            sent = self._producer.send(
                topic, key=key, value=b"" if key is None and value is None else value, headers=list(headers)
            )
        except (KafkaError, OSError, RuntimeError) as error:
            future.set_exception(_stream_error(error, self._settings))
            return future
        sent.add_callback(lambda _: future.set_result(None))
        sent.add_errback(lambda error: future.set_exception(_stream_error(error, self._settings)))
        return future

    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits until every record sent before is acknowledged or failed. StreamError after ``timeout_s``."""
        with _translated(self._settings):
            self._producer.flush(timeout=timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Sends what is waiting, for at most ``timeout_s``, and lets go of the broker."""
        with _translated(self._settings):
            self._producer.close(timeout=timeout_s)


class Lag:
    """How far a group is behind on a topic, seen from outside the group, whoever its members are. Not thread-safe.

    Fetches what is new, since a fetch is what tells where a partition ends. StreamError.
    """

    def __init__(self, settings: Settings, group: str, topic: str) -> None:
        self._settings = settings
        self._group = group
        with _translated(settings):
            self._admin: Any = KafkaAdminClient(**_options(settings))
            self._consumer: Any = KafkaConsumer(
                **_options(settings), enable_auto_commit=False, fetch_max_wait_ms=_FETCH_WAIT_MS
            )
            self._partitions = [TopicPartition(topic, p) for p in self._consumer.partitions_for_topic(topic) or ()]
            self._consumer.assign(self._partitions)

    def read(self) -> int:
        """Records that the group has not committed yet; a partition it never committed counts from its start."""
        with _translated(self._settings):
            committed = self._admin.list_group_offsets(self._group).get(self._group, {})
            starts = {p: committed[p].offset if p in committed else 0 for p in self._partitions}
            for partition, start in starts.items():
                self._consumer.seek(partition, max(start, self._consumer.highwater(partition) or 0))
            ends: dict[Any, int | None] = {}
            deadline = time.monotonic() + _LAG_S
            while time.monotonic() < deadline:
                fetched = self._consumer.poll(timeout_ms=2 * _FETCH_WAIT_MS)
                ends = {p: self._consumer.highwater(p) for p in self._partitions}
                if not fetched and None not in ends.values():
                    break
            return sum(max(0, (end or 0) - starts[p]) for p, end in ends.items())

    def close(self) -> None:
        """Lets go of the broker."""
        with _translated(self._settings):
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
        with _translated(settings):
            self._admin: Any = KafkaAdminClient(**_options(settings))
            consumer = self._connect()
            self._partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
            consumer.close(autocommit=False)
        if not self._partitions:
            self.close()
            raise StreamError(
                f"kafka: {settings.kafka} has no topic {topic}; see the BIOBRACKET_TOPIC_ settings", retryable=False
            )

    def committed(self, group: str) -> dict[int, int]:
        """The committed offset by partition; one that the group never committed is left out."""
        deadline = time.monotonic() + _CONNECT_MS / 1000
        with _translated(self._settings):
            while True:
                try:
                    found = self._admin.list_group_offsets(group).get(group, {})
                    break
                except CoordinatorNotAvailableError:  # the first group of a cluster: Kafka creates the offsets topic
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            return {p.partition: found[p].offset for p in self._partitions if p in found and found[p].offset >= 0}

    def read(self, until: Mapping[int, int] | None = None, *, since_ms: int = 0) -> Iterator[list[Record]]:
        """The records of each fetch, maybe none; in order within a partition.

        ``until``: the offset to stop before, by partition, others are left out; without it the end as it is when
        reading starts. ``since_ms``: milliseconds since 1970; records that are older are left out.
        """
        wanted = [p for p in self._partitions if until is None or until.get(p.partition, 0) > 0]
        with _translated(self._settings):
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
            with _translated(self._settings):
                fetched = self._consumer.poll(timeout_ms=5 * _FETCH_WAIT_MS)
                for partition, batch in fetched.items():
                    if partition in open_:
                        end = self._end(partition, until)
                        kept = [each for each in batch if end is None or each.offset < end]
                        records += [_record(partition.topic, partition.partition, each) for each in kept]
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
        with _translated(self._settings):
            self._disconnect()
            self._admin.close()

    def _connect(self) -> Any:
        return KafkaConsumer(
            **_options(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            fetch_max_bytes=max(_FETCH_BYTES, self._settings.max_message_bytes + _OVERHEAD_BYTES),
            max_partition_fetch_bytes=self._settings.max_message_bytes + _OVERHEAD_BYTES,
        )

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


def ensure_topics(settings: Settings) -> None:
    """Creates the four topics where they are absent; leaves existing ones as they are. StreamError on failure."""
    wanted = (
        settings.topic_documents,
        settings.topic_entities,
        settings.topic_dead_letters,
        settings.topic_feedback,
    )
    with _translated(settings):
        admin = KafkaAdminClient(**_options(settings))
        try:
            for topic in sorted(set(wanted) - set(admin.list_topics())):
                _create(admin, topic, settings)
            admin.wait_for_topics(list(wanted), timeout_ms=_CONNECT_MS)
        finally:
            admin.close()


def _create(admin: Any, topic: str, settings: Settings) -> None:
    options = {
        "num_partitions": settings.partitions,
        "replication_factor": settings.replication,
        "configs": {"max.message.bytes": str(settings.max_message_bytes + _OVERHEAD_BYTES)},
    }
    try:
        admin.create_topics({topic: options}, timeout_ms=_CONNECT_MS)
    except TopicAlreadyExistsError:  # another process was faster
        return


def _record(topic: str, partition: int, read: Any) -> Record:
    headers = tuple((name, value or b"") for name, value in read.headers or ())
    return Record(topic, partition, read.offset, read.key, read.value, read.timestamp, headers)


def _positions(offsets: Mapping[Partition, int]) -> dict[Any, Any]:
    return {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}


def _options(settings: Settings) -> dict[str, Any]:
    """Client options of consumer, producer and admin client alike."""
    known = {name for name in KafkaAdminClient.DEFAULT_CONFIG if name.startswith(_SECURITY)}
    unknown = sorted(set(settings.kafka_security) - known)
    if unknown:
        raise StreamError(
            f"kafka_security: no such option: {', '.join(unknown)}; BIOBRACKET_KAFKA_SECURITY takes "
            f"{', '.join(sorted(known))}",
            retryable=False,
        )
    words = {"true": True, "false": False}
    security = {name: words.get(value.lower(), value) for name, value in settings.kafka_security.items()}
    return {
        "bootstrap_servers": [server.strip() for server in settings.kafka.split(",")],
        "bootstrap_timeout_ms": _CONNECT_MS,
        **security,
    }


class _translated:
    """Turns what kafka-python raises into StreamError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (KafkaError, OSError)):
            # `from None`: kafka-python's messages can carry records.
            raise _stream_error(error, self._settings) from None


def _stream_error(error: BaseException, settings: Settings) -> StreamError:
    if isinstance(error, (MessageSizeTooLargeError, RecordListTooLargeError)):
        return StreamError(
            "max_message_bytes: a record is larger than the client or the broker takes; raise "
            "BIOBRACKET_MAX_MESSAGE_BYTES and the topic's max.message.bytes, or send smaller documents",
            retryable=False,
        )
    if isinstance(error, _REBALANCING):
        return Rebalancing("kafka: the group rebalances; what is not committed will be read again", retryable=True)
    if isinstance(error, InconsistentGroupProtocolError):
        return MixedAssignors(
            "kafka: the consumer group has members that share out partitions in another way, as biobracket did before "
            "it assigned them cooperatively; stop every consumer of the old version, then this one joins by itself",
            retryable=True,
        )
    return StreamError(
        f"kafka: {type(error).__name__} from {settings.kafka}; see that BIOBRACKET_KAFKA names a running broker "
        "and BIOBRACKET_KAFKA_SECURITY what it asks for, or start the embedded one with `biobracket up`",
        retryable=isinstance(error, (RetriableError, OSError)),
    )
