"""The consumer and its source over a model of the Kafka client, in any order of what can happen to a group.

The model keeps what the real client keeps (kafka-python 3.0): the position and the pause of each partition that stands
in an assignment and in the next one, whichever assignor shares them out. It runs in the consumer's own thread, but only
when a rule lets it, so that a failing sequence is the same each time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from kafka.errors import CommitFailedError, KafkaConnectionError, KafkaTimeoutError, RebalanceInProgressError
from kafka.structs import TopicPartition

from services.ingest import consumer
from services.ingest.config import IngestConfig
from services.ingest.consumer import Consumer
from shared.backends.records import Callback, Headers
from shared.backends.result_store import Write
from shared.backends.streams import source as source_module
from shared.backends.streams.source import Source
from shared.messages import Extraction
from shared.settings import Settings
from tests.support.kafka import Eager

PARTITIONS = tuple(TopicPartition("documents", p) for p in range(3))
SETTINGS = Settings(topic_documents="documents", topic_feedback="feedback")
PATIENCE_S = 60.0
MEMBERS = 3
# Far more than any group here needs to settle and to read what there is.
ROUNDS = 60
SEARCH = hypothesis.settings(max_examples=60, stateful_step_count=40, report_multiple_bugs=False)


class Outage(Exception):
    """What a replica that is not there looks like here."""


class Death(Exception):
    """What a process that died looks like here."""


@dataclass
class Group:
    """The broker: logs, committed offsets, and who shares the partitions."""

    cooperative: bool
    logs: dict[TopicPartition, list[str]] = field(default_factory=lambda: {p: [] for p in PARTITIONS})
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    members: dict[int, Client] = field(default_factory=dict)
    joined: set[int] = field(default_factory=set)
    generation: int = 0
    stable: bool = True
    shares: dict[int, set[TopicPartition]] = field(default_factory=dict)

    def rebalance(self) -> None:
        self.stable = False
        self.joined.clear()

    def remove(self, member: int) -> None:
        if self.members.pop(member, None) is not None:
            self.shares.pop(member, None)
            self.rebalance()

    def join(self, client: Client) -> None:
        """A barrier: the new generation begins when every member has come to it."""
        if client.member not in self.members:
            self.members[client.member] = client
            self.rebalance()
        self.joined.add(client.member)
        if self.joined == self.members.keys():
            self.generation += 1
            self.stable = True
            self.shares = self._shared_out()

    def _shared_out(self) -> dict[int, set[TopicPartition]]:
        """Each keeps what it has up to a fair share; what still has an owner waits for the next round."""
        owned = {m: set(client.assigned) if self.cooperative else set() for m, client in self.members.items()}
        wanted: dict[int, set[TopicPartition]] = {m: set() for m in self.members}
        order = sorted(self.members)
        for place, partition in enumerate(PARTITIONS):
            fair = -(-len(PARTITIONS) // len(order))
            holders = [m for m in order if partition in self.members[m].assigned and len(wanted[m]) < fair]
            wanted[holders[0] if holders else min(order, key=lambda m: (len(wanted[m]), m + place))].add(partition)
        if not self.cooperative:
            return wanted
        return {m: {p for p in wanted[m] if all(p not in owned[other] for other in order if other != m)} for m in order}


@dataclass
class Place:
    position: int | None = None
    paused: bool = False


class Client:
    """What :class:`Source` uses of ``kafka.KafkaConsumer``."""

    def __init__(self, group: Group, member: int) -> None:
        self.group = group
        self.member = member
        self.assigned: dict[TopicPartition, Place] = {}
        self.generation = -1
        self.rejoining = False
        self.dead = False
        self.commit_fails: str | None = None
        self.turns = threading.Semaphore(0)
        self.waiting = threading.Event()
        self.free = False
        self._listener: Any = None
        self._net = asyncio
        self._client = SimpleNamespace(cluster=SimpleNamespace(topic_id=lambda topic: None))
        self._coordinator = SimpleNamespace(rebalance_in_progress=lambda: False)

    def subscribe(self, topics: list[str], listener: Any) -> None:
        self._listener = listener

    # -- the group -----------------------------------------------------------------------------------------------------

    def _coordinate(self) -> bool:
        """Whether this member is settled in the group."""
        group = self.group
        if self.generation >= 0 and self.member not in group.members:  # the session is lost
            lost, self.generation, self.rejoining = set(self.assigned), -1, False
            if lost:
                self._call(self._listener.on_partitions_lost(lost))
            self.assigned.clear()
        if self.generation < 0 or not group.stable:
            if not self.rejoining:
                if not group.cooperative:
                    self._call(self._listener.on_partitions_revoked(set(self.assigned)))
                self.rejoining = True
            if self.member not in group.joined or self.member not in group.members:
                group.join(self)
        if not group.stable:
            return False
        if self.generation != group.generation:
            self.generation, self.rejoining = group.generation, False
            share, before = group.shares[self.member], set(self.assigned)
            # As `SubscriptionState.assign_from_subscribed`: what stays keeps its state.
            self.assigned = {p: self.assigned.get(p, Place()) for p in sorted(share)}
            if group.cooperative:
                if before - share:
                    self._call(self._listener.on_partitions_revoked(before - share))
                if share - before:
                    self._call(self._listener.on_partitions_assigned(share - before))
                if before - share:
                    group.rebalance()
            else:
                self._call(self._listener.on_partitions_assigned(share))
        return group.stable

    def _call(self, listener: Coroutine[Any, Any, None]) -> None:
        asyncio.run(listener)

    # -- the client ----------------------------------------------------------------------------------------------------

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        if not self.free:
            self.waiting.set()
            self.turns.acquire()
            self.waiting.clear()
        self._check()
        if not self._coordinate():
            return {}
        batches: dict[TopicPartition, list[Any]] = {}
        for partition, place in self.assigned.items():
            if place.position is None:
                place.position = self.group.committed.get(partition, 0)
            room = max_records - sum(map(len, batches.values()))
            log = self.group.logs[partition]
            if place.paused or not room or place.position >= len(log):
                continue
            end = min(len(log), place.position + room)
            batches[partition] = [
                SimpleNamespace(
                    offset=offset,
                    key=None,
                    value=json.dumps({"id": log[offset], "text": "x"}).encode(),
                    timestamp=0,
                    headers=(),
                )
                for offset in range(place.position, end)
            ]
            place.position = end
        return batches

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        self._check()
        self._commit(offsets)

    async def commit_async(self, offsets: dict[TopicPartition, Any]) -> None:
        self._check()
        self._commit(offsets)

    def _commit(self, offsets: dict[TopicPartition, Any]) -> None:
        fails, self.commit_fails = self.commit_fails, None
        if fails == "before":
            raise KafkaTimeoutError
        if self.rejoining:
            raise RebalanceInProgressError
        if self.member not in self.group.members or self.generation != self.group.generation:
            raise CommitFailedError
        self.group.committed |= {partition: each.offset for partition, each in offsets.items()}
        if fails == "after":
            raise KafkaTimeoutError

    def committed(self, partition: TopicPartition, timeout_ms: int) -> int | None:
        self._check()
        return self.group.committed.get(partition)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.assigned[partition].position = offset

    def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        for partition in partitions:
            self.seek(partition, 0)

    def assignment(self) -> set[TopicPartition]:
        return set(self.assigned)

    def pause(self, *partitions: TopicPartition) -> None:
        for partition in partitions:
            self.assigned[partition].paused = True

    def resume(self, *partitions: TopicPartition) -> None:
        for partition in partitions:
            self.assigned[partition].paused = False

    def paused(self) -> set[TopicPartition]:
        return {partition for partition, place in self.assigned.items() if place.paused}

    def highwater(self, partition: TopicPartition) -> int:
        return len(self.group.logs[partition])

    def position(self, partition: TopicPartition, timeout_ms: int) -> int | None:
        return self.assigned[partition].position

    def close(self, autocommit: bool, timeout_ms: int) -> None:
        if self.dead:
            return
        if self.assigned:
            here = self.member in self.group.members
            leaving = self._listener.on_partitions_revoked if here else self._listener.on_partitions_lost
            self._call(leaving(set(self.assigned)))
        self.assigned.clear()
        self.group.remove(self.member)

    def _check(self) -> None:
        if self.dead:
            raise KafkaConnectionError


class Store:
    """Results and dead letters: what is here is done."""

    def __init__(self, done: set[str]) -> None:
        self._done = done

    def put(self, extraction: Any) -> Write:
        return Write("written", extraction)

    def erased(self, document_id: str, source: Any) -> bool:
        return False

    def published(self, extraction: Any, what: Any) -> None:
        self._done.add(what.document_id)


class Sink:
    def __init__(self, done: set[str]) -> None:
        self._done = done

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Future[None]:
        if topic == SETTINGS.topic_dead_letters:
            self._done.add(json.loads(value or b"")["id"])
        sent: Future[None] = Future()
        sent.set_result(None)
        return sent

    def close(self) -> None:
        return None


@dataclass
class Replica:
    client: Client
    consumer: Consumer
    task: asyncio.Task[None]
    pending: dict[int, asyncio.Future[None]]
    asked: dict[int, str]  # of each pending attempt the document


class States(RuleBasedStateMachine):
    cooperative = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.group = Group(self.cooperative)
        self.done: set[str] = set()
        self.replicas: dict[int, Replica] = {}
        self.dead: list[int] = []
        self.started = 0
        self.attempts = itertools.count()
        self.broken = False

    # -- rules ---------------------------------------------------------------------------------------------------------

    @rule(partition=st.sampled_from(PARTITIONS), count=st.integers(1, 3))
    def produce(self, partition: TopicPartition, count: int) -> None:
        log = self.group.logs[partition]
        log += [f"{partition.partition}-{offset}" for offset in range(len(log), len(log) + count)]

    @precondition(lambda self: len(self.replicas) < MEMBERS)
    @rule()
    def join(self) -> None:
        member = self.started = self.started + 1
        client = Client(self.group, member)
        pending: dict[int, asyncio.Future[None]] = {}
        asked: dict[int, str] = {}

        async def process(document: Any) -> Any:
            attempt = next(self.attempts)
            pending[attempt], asked[attempt] = asyncio.get_running_loop().create_future(), document.id
            try:
                await pending[attempt]
            finally:
                del pending[attempt], asked[attempt]
            return Extraction(
                document_id=document.id, text_sha256="", lang="en", types=(), entities=(), model_revision="r"
            )

        def source(revoked: Callback) -> Source:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(source_module, "KafkaConsumer", lambda **_: client)
                return Source(SETTINGS, "g", ["documents"], on_revoked=revoked)

        config = IngestConfig(
            max_documents=4, attempts=1, commit_s=1e-9, backoff_s=1e-9, backoff_max_s=1e-9, drain_s=0, poll_s=1e-3
        )
        consumer = Consumer(
            open_source=source,
            open_sink=lambda: Sink(self.done),  # type: ignore[arg-type, return-value]
            store=Store(self.done),  # type: ignore[arg-type]
            feedback=None,  # type: ignore[arg-type]
            process=process,
            settings=SETTINGS,
            config=config,
            halts=SimpleNamespace(halted=lambda: None, halt=lambda why: None),  # type: ignore[arg-type]
            transient=(Outage,),
            crashes=(Death,),
        )
        replica = Replica(client, consumer, self.loop.create_task(consumer.run()), pending, asked)
        self.replicas[member] = replica
        self._run(self._quiet(replica))

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), commits=st.booleans())
    def turn(self, data: st.DataObject, commits: bool) -> None:
        """One read, with or without a commit after it."""
        self._turn(self._draw(data), commits)

    @precondition(lambda self: any(replica.pending for replica in self.replicas.values()))
    @rule(data=st.data(), how=st.sampled_from(["done", "done", "done", "outage", "fault", "death"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        open_ = [(m, attempt) for m, replica in sorted(self.replicas.items()) for attempt in sorted(replica.pending)]
        member, attempt = data.draw(st.sampled_from(open_))
        self._finish(self.replicas[member], attempt, how)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), answer=st.sampled_from(["before", "after"]))
    def commit_error(self, data: st.DataObject, answer: str) -> None:
        """The next commit fails, before the broker has it or after."""
        self._draw(data).client.commit_fails = answer

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def lose_session(self, data: st.DataObject) -> None:
        self.group.remove(self._draw(data).client.member)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), place=st.integers(0, 2), back=st.integers(1, 3))
    def go_back(self, data: st.DataObject, place: int, back: int) -> None:
        """The client's position falls by itself, as after a log was cut."""
        assigned = self._draw(data).client.assigned
        if (state := assigned.get(PARTITIONS[place])) and state.position:
            state.position = max(0, state.position - back)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        replica = self._draw(data)
        del self.replicas[replica.client.member]
        replica.consumer.stop()
        self._end(replica)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        replica = self._draw(data)
        del self.replicas[replica.client.member]
        self.dead.append(replica.client.member)
        replica.client.dead = True
        replica.task.cancel()
        self._end(replica)

    @precondition(lambda self: self.dead)
    @rule()
    def notice_a_death(self) -> None:
        self.group.remove(self.dead.pop(0))

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def what_is_committed_is_done(self) -> None:
        for partition, committed in self.group.committed.items():
            undone = [id_ for id_ in self.group.logs[partition][:committed] if id_ not in self.done]
            self._check(not undone, f"committed up to {committed}, and not done: {undone}")

    @invariant()
    def what_was_read_is_waiting_in_flight_or_done(self) -> None:
        for replica in self.replicas.values():
            consumer = replica.consumer
            works = [*consumer._backlog, *consumer._running.values(), *consumer._suspects]
            held = {(w.record.topic, w.record.partition, w.record.offset) for w in works}
            for partition, place in replica.client.assigned.items():
                if partition in consumer._source._dropped or place.position is None:
                    continue
                for offset in range(self.group.committed.get(partition, 0), place.position):
                    id_ = self.group.logs[partition][offset]
                    self._check(id_ in self.done or (*partition, offset) in held, f"{id_} is forgotten")

    def teardown(self) -> None:
        try:
            if not self.broken:
                self._come_to_an_end()
        finally:
            for replica in self.replicas.values():
                replica.client.dead = True
                replica.task.cancel()
                self._end(replica)
            self._run(self.loop.shutdown_default_executor())
            self.loop.close()

    def _come_to_an_end(self) -> None:
        """With the dead noticed and nothing more going wrong, everything is done and committed."""
        while self.dead:
            self.notice_a_death()
        if not self.replicas:
            self.join()
        for _ in range(ROUNDS):
            for replica in self.replicas.values():
                self._turn(replica, True)
                for attempt in sorted(replica.pending):
                    self._finish(replica, attempt, "done")
                self.what_is_committed_is_done()
            if all(self.group.committed.get(p, 0) == len(log) for p, log in self.group.logs.items()):
                return
        raise AssertionError(f"not all is done and committed: {self.group.committed} of {self.group.logs}")

    def _check(self, holds: bool, message: str) -> None:
        self.broken = self.broken or not holds
        assert holds, message

    # -- driving it ----------------------------------------------------------------------------------------------------

    def _draw(self, data: st.DataObject) -> Replica:
        return self.replicas[data.draw(st.sampled_from(sorted(self.replicas)))]

    def _run(self, work: Awaitable[None]) -> None:
        self.loop.run_until_complete(work)

    def _turn(self, replica: Replica, commits: bool) -> None:
        replica.consumer._commit_due = 0.0 if commits else float("inf")
        replica.client.waiting.clear()
        replica.client.turns.release()
        self._run(self._quiet(replica))

    def _finish(self, replica: Replica, attempt: int, how: str) -> None:
        error = {"outage": Outage(), "fault": ValueError(), "death": Death()}.get(how)
        future = replica.pending[attempt]
        future.set_exception(error) if error else future.set_result(None)
        self._run(self._until(lambda: attempt not in replica.pending and self._settled(replica)))

    def _end(self, replica: Replica) -> None:
        replica.client.free = True
        replica.client.turns.release()
        self._run(self._until(replica.task.done))
        if not replica.task.cancelled() and not replica.client.dead:
            replica.task.result()

    async def _quiet(self, replica: Replica) -> None:
        await self._until(lambda: replica.client.waiting.is_set() and self._settled(replica))

    def _settled(self, replica: Replica) -> bool:
        if replica.task.done():
            replica.task.result()
        # By document: one that is cancelled and not gone yet must not stand for one that is in a thread.
        running = [json.loads(work.record.value)["id"] for work in replica.consumer._running.values()]
        return sorted(running) == sorted(replica.asked.values())

    async def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.0002)


class EagerStates(States):
    cooperative = False


@pytest.mark.parametrize("machine", [States, EagerStates])
def test_every_record_is_done_before_its_offset_is_committed(
    machine: type[States], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "_FINISH_S", 0)  # nothing finishes by itself
    monkeypatch.setattr(source_module, "tolerate_unreadable", lambda client, attempts: None)  # the model has no batches
    if machine is EagerStates:
        monkeypatch.setattr(source_module, "Assignor", Eager)
    run_state_machine_as_test(machine, settings=SEARCH)
