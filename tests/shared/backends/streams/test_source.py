"""The same contract on every broker: see conftest.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.structs import TopicPartition

from shared.backends.records import Callback, Partition, Record, position_of
from shared.backends.streams import source as source_module
from shared.backends.streams.scan import Lag
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Membership, Source
from shared.backends.streams.topics import ensure_topics
from shared.errors import Fenced, Rebalancing, StreamError
from shared.settings import Settings
from tests.support.kafka import Eager, Kafka
from tests.support.streams import PATIENCE_S, Member, Noida, ends, fill, needs_noida, places, read, until, wait


def test_a_group_goes_on_where_it_committed(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    fill(sink, stream, 30)
    first = source()
    records = read(first, 30)
    done, open_ = ends(records), records[-1]
    done[open_.topic, open_.partition] = open_.offset
    first.commit(done)
    first.close()
    again = read(source(), 1)
    assert [(record.partition, record.offset) for record in again] == [(open_.partition, open_.offset)]


def test_what_was_not_committed_comes_again(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    sent = fill(sink, stream, 10)
    first = source()
    assert len(read(first, 10)) == 10
    first.close()
    assert {record.key for record in read(source(), 10)} == set(sent)


def test_poll_gives_no_more_than_asked(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    fill(sink, stream, 20)
    member = source()
    seen: list[Record] = []
    while len(seen) < 20:
        records = member.poll(5.0, 3)
        assert len(records) <= 3
        seen += records


def test_paused_partitions_rest_and_others_go_on(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    member = source()
    until(member, lambda: len(member.assignment()) == 3)
    resting = stream.topic_documents, 1
    member.pause([resting, ("gone", 0)])
    assert member.paused() == {resting}
    fill(sink, stream, 30)
    seen: list[Record] = []
    while batch := member.poll(3.0, 100):
        seen += batch
    assert {record.partition for record in seen} <= {0, 2}
    member.resume([resting])
    assert member.paused() == set()
    seen += read(member, 30 - len(seen))
    assert len({record.key for record in seen}) == 30


def test_lag_falls_to_zero(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    fill(sink, stream, 12)
    member = source()
    records = read(member, 12)
    assert len(records) == 12
    assert member.lag() == 0
    assert member.lag(committed=True) == 12
    member.commit(ends(records))
    assert member.lag(committed=True) == 0


def test_lag_counts_what_waits(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    for n in range(10):
        sink.send(stream.topic_documents, b"one", b"%d" % n).result(PATIENCE_S)
    member = source()
    first: list[Record] = []
    while not first:
        first = member.poll(1.0, 4)
    assert member.lag() == 10 - len(first)


def test_callbacks_tell_of_partitions_and_may_commit(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    fill(sink, stream, 30)
    came: list[set[Partition]] = []
    went: list[set[Partition]] = []
    done: dict[Partition, int] = {}

    def revoked(partitions: set[Partition]) -> None:
        went.append(partitions)
        first.commit(done)

    first = source(on_assigned=came.append, on_revoked=revoked)
    done |= ends(read(first, 30))
    everything = {(stream.topic_documents, n) for n in range(3)}
    assert came == [everything]
    first.close()
    assert went == [everything]
    second = source()
    until(second, lambda: second.assignment() == everything)
    assert second.poll(2.0, 100) == []


@pytest.mark.slow
def test_a_rebalance_takes_only_what_goes_and_what_was_committed_stays_read(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    sent = len(fill(sink, stream, 30))
    went: list[set[Partition]] = []
    done: dict[Partition, int] = {}

    def revoked(partitions: set[Partition]) -> None:
        went.append(partitions)
        first.commit({each: done[each] for each in partitions})

    first = source(on_revoked=revoked)
    records = read(first, sent)
    done |= ends(records)
    resting = set(first.assignment())
    first.pause(resting)
    with Member(first) as one, Member(source()) as other:
        wait(lambda: 0 < len(other.source.assignment()) < 3 and len(first.assignment()) < 3)
        stayed = first.assignment()
        assert went == [other.source.assignment()]
        assert stayed | went[0] == resting
        # What stays keeps its pause and its position; what went starts where it was committed.
        assert first.paused() == stayed
        first.resume(stayed)
        more = [sink.send(stream.topic_documents, b"more-%d" % n, b"v") for n in range(30)]
        for future in more:
            future.result(PATIENCE_S)
        wait(lambda: len(one.read) + len(other.read) >= 30)
    assert {record.key for record in one.read + other.read} == {b"more-%d" % n for n in range(30)}
    assert len(one.read + other.read) == 30


@pytest.mark.slow
def test_what_was_dropped_is_read_again_whatever_the_client_keeps(
    stream: Settings, sink: Sink, source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an eager assignor everything is revoked, and the client then goes on behind what was read."""
    monkeypatch.setattr(source_module, "Assignor", Eager)
    sent = len(fill(sink, stream, 30))
    went: list[set[Partition]] = []
    first = source(on_revoked=went.append)
    before = read(first, sent)
    undone = {(stream.topic_documents, p): 4 for p in range(3)}
    first.commit(undone)
    with Member(first) as one, Member(source()) as other:
        wait(lambda: 0 < len(other.source.assignment()) < 3 and len(first.assignment()) < 3)
        expected = [place for place in places(before) if place[1] >= 4]
        wait(lambda: len(one.read) + len(other.read) >= len(expected))
        assert first.assignment()
    assert went[0] == {(stream.topic_documents, p) for p in range(3)}
    assert sorted(set(places(one.read + other.read))) == expected


def test_a_rewound_partition_is_read_from_its_committed_offset(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    sent = len(fill(sink, stream, 30))
    member = source()
    before = places(read(member, sent))
    zero, one = (stream.topic_documents, 0), (stream.topic_documents, 1)
    member.commit({one: 3})
    member.rewind([zero, one, ("gone", 0)])
    expected = [(p, o) for p, o in before if p == 0 or (p == 1 and o >= 3)]
    assert places(read(member, len(expected))) == expected
    assert member.poll(1.0, 100) == []


@pytest.mark.slow
def test_a_lost_session_commits_nothing_and_reads_again(
    stream: Settings,
    sink: Sink,
    source: Callable[..., Source],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The member falls silent for longer than its session, while another one takes over."""
    if request.node.callspec.params["address"] == "noida":
        pytest.skip("noida-db never ends a session")
    sent = len(fill(sink, stream, 30))
    went: list[set[Partition]] = []

    def revoked(partitions: set[Partition]) -> None:
        went.append(partitions)
        first.commit(done)  # comes too late

    first = source(on_revoked=revoked)
    before = read(first, sent)
    done = ends(before)
    everything = first.assignment()
    coordinator = first._consumer._coordinator
    silent = threading.Event()
    beat = coordinator._send_heartbeat_request

    async def heartbeat() -> None:
        if not silent.is_set():
            await beat()

    monkeypatch.setattr(coordinator, "_send_heartbeat_request", heartbeat)
    silent.set()
    with Member(source()) as other:
        # It reads everything again: nothing was committed.
        wait(lambda: other.source.assignment() == everything and len(other.read) == sent)
        silent.clear()
        with pytest.raises(Rebalancing):
            first.commit(done)
        with Member(first) as one:
            wait(lambda: bool(went) and 0 < len(first.assignment()) < 3)
            assert went[0] == everything
            wait(lambda: len(first.assignment() | other.source.assignment()) == 3)
            back = first.assignment()
            wait(lambda: len(one.read) >= len([r for r in before if (r.topic, r.partition) in back]))
    assert places(other.read)[:sent] == places(before)
    assert set(places(one.read)) <= set(places(before))
    again = Lag(stream, stream.topic_documents, stream.topic_documents)
    assert again.read() == sent
    again.close()


def test_a_closed_member_is_gone_at_once_and_its_last_commit_counts(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    sent = len(fill(sink, stream, 30))
    first = source(on_revoked=lambda _: first.commit(done))
    done = ends(read(first, sent))
    del done[stream.topic_documents, 0]
    first.close()
    first.close()
    second = source()
    _until_assigned = read(second, 1)
    wait(lambda: len(second.assignment()) == 3)
    assert {record.partition for record in _until_assigned + second.poll(1.0, 100)} == {0}


def test_lag_is_that_of_the_newest_fetch(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    member = source()
    until(member, lambda: len(member.assignment()) == 3)
    member.poll(1.0, 10)
    assert member.lag() == 0
    member.pause(member.assignment())
    member.poll(0.5, 10)
    fill(sink, stream, 12)
    assert member.poll(1.0, 10) == []
    before = member.lag()
    assert before <= 12  # a fetch may have been under way
    member.resume(member.paused())
    read(member, 12)
    assert (member.lag(), member.lag(committed=True)) == (0, 12)


@pytest.mark.slow
def test_two_members_share_and_lose_nothing(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    sent = set(fill(sink, stream, 60))
    seen: set[bytes | None] = set()
    members = [source(), source()]
    done = threading.Event()

    def work(member: Source) -> None:
        while not done.is_set():
            seen.update(record.key for record in member.poll(0.5, 10))

    def settled() -> bool:
        return seen == sent and all(0 < len(member.assignment()) < 3 for member in members)

    with ThreadPoolExecutor(2) as threads:
        work_of_both = [threads.submit(work, member) for member in members]
        deadline = time.monotonic() + PATIENCE_S
        while not settled() and time.monotonic() < deadline:
            time.sleep(0.1)
        done.set()
    for one in work_of_both:
        one.result()
    assert seen == sent
    assert not members[0].assignment() & members[1].assignment()
    assert members[0].assignment() | members[1].assignment() == {(stream.topic_documents, n) for n in range(3)}


def test_a_rejoin_that_outlives_a_poll_is_finished(stream: Settings, source: Callable[..., Source]) -> None:
    """The client forgets one that only changed metadata called for, and would neither read nor send heartbeats."""
    ensure_topics(stream)
    member = source()
    until(member, lambda: len(member.assignment()) == 3)
    coordinator = member._consumer._coordinator
    coordinator._assignment_snapshot = {}  # as if the topic were new to the leader
    wait(lambda: member.poll(0.0, 1) == [] and coordinator.rebalance_in_progress())
    wait(lambda: coordinator._join_task.is_done)
    until(member, lambda: not coordinator.rebalance_in_progress())
    assert len(member.assignment()) == 3


@needs_noida
@pytest.mark.slow
def test_work_resumes_when_the_broker_comes_back(tmp_path: Path, fresh: Callable[[str], Settings]) -> None:
    server = Noida(tmp_path)
    server.start()
    settings = fresh(server.url)
    ensure_topics(settings)
    sink = Sink(settings)
    source = Source(settings, "g", [settings.topic_documents])
    sent = set(fill(sink, settings, 5))
    seen = {record.key for record in read(source, 5)}
    server.stop()
    late = sink.send(settings.topic_documents, b"late", b"v")
    assert source.poll(1.0, 10) == []
    server = Noida(tmp_path, server.port)
    server.start()
    late.result(PATIENCE_S)
    while b"late" not in seen:
        seen |= {record.key for record in source.poll(1.0, 10)}
    assert seen == sent | {b"late"}
    source.close()
    sink.close()
    server.stop()


def test_commits_of_partitions_that_went_are_passed_over(stream: Settings, source: Callable[..., Source]) -> None:
    member = source()
    until(member, lambda: len(member.assignment()) == 3)
    member.commit({("gone", 0): 7})
    member.commit({})
    assert member.assignment() == {(stream.topic_documents, n) for n in range(3)}


def test_ends_of_transactions_are_committed_and_no_lag(kafka: Kafka, fresh: Callable[[str], Settings]) -> None:
    settings = fresh(kafka.url)
    ensure_topics(settings)
    topic = settings.topic_documents
    producer = KafkaProducer(bootstrap_servers=kafka.url, transactional_id=topic)
    producer.init_transactions()

    def transact(values: list[bytes], end: Callable[[], None]) -> None:
        producer.begin_transaction()
        for value in values:
            producer.send(topic, value, partition=0)
        producer.flush()
        end()

    source = Source(settings, topic, [topic])
    lag = Lag(settings, topic, topic)
    transact([b"a", b"b"], producer.commit_transaction)
    transact([b"never"], producer.abort_transaction)
    transact([b"c"], producer.commit_transaction)
    records = read(source, 3)
    assert [record.value for record in records] == [b"a", b"b", b"c"]
    source.commit({(topic, 0): records[1].offset + 1})
    assert source.lag(committed=True) > 0
    source.commit({(topic, 0): records[2].offset + 1})
    # Another one that nobody is given, after everything was committed.
    transact([b"never either"], producer.abort_transaction)
    deadline = time.monotonic() + PATIENCE_S
    while lag.read() and time.monotonic() < deadline:
        assert source.poll(0.2, 10) == []
        source.commit({})
    assert lag.read() == 0
    assert source.lag(committed=True) == 0
    producer.close()
    lag.close()
    source.close()


def test_expired_records_are_no_lag(kafka: Kafka, fresh: Callable[[str], Settings]) -> None:
    settings = fresh(kafka.url).model_copy(update={"partitions": 1})
    ensure_topics(settings)
    topic = settings.topic_documents
    sink = Sink(settings)
    fill(sink, settings, 9)
    source = Source(settings, topic, [topic])
    first = read(source, 9)
    source.commit({(topic, 0): first[3].offset})
    source.close()
    admin = KafkaAdminClient(bootstrap_servers=kafka.url)
    admin.delete_records({TopicPartition(topic, 0): 9})
    admin.close()
    again = Source(settings, topic, [topic])
    lag = Lag(settings, topic, topic)
    deadline = time.monotonic() + PATIENCE_S
    while (lag.read() or again.lag(committed=True)) and time.monotonic() < deadline:
        assert again.poll(0.2, 10) == []
        again.commit({})
    assert (lag.read(), again.lag(committed=True)) == (0, 0)
    sink.send(topic, b"k", b"later").result(PATIENCE_S)
    assert [record.value for record in read(again, 1)] == [b"later"]
    for each in (sink, lag, again):
        each.close()


@pytest.mark.parametrize(("given", "expected"), [(-1, 0), (1_790_000_000_000, 1_790_000_000_000)])
def test_times_are_milliseconds_or_nothing(
    kafka: Kafka, fresh: Callable[[str], Settings], given: int, expected: int
) -> None:
    settings = fresh(kafka.url)
    ensure_topics(settings)
    producer = KafkaProducer(bootstrap_servers=kafka.url)
    producer.send(settings.topic_documents, b"v", timestamp_ms=given).get(PATIENCE_S)
    producer.close()
    source = Source(settings, settings.topic_documents, [settings.topic_documents])
    (record,) = read(source, 1)
    assert record.timestamp_ms == expected
    assert len(record.topic_id) == 32
    assert position_of(record).topic_id == record.topic_id
    source.close()


@pytest.fixture
def static(kafka: Kafka, fresh: Callable[[str], Settings]) -> Iterator[Callable[..., Source]]:
    """Makes static members of one group, on Apache Kafka: the others have none."""
    settings = fresh(kafka.url)
    ensure_topics(settings)
    with ExitStack() as cleanup:

        def make(instance: str, session_s: float = 30.0, **callbacks: Callback) -> Source:
            topic = settings.topic_documents
            member = Source(settings, topic, [topic], membership=Membership(session_s, 1.0, instance), **callbacks)
            cleanup.callback(member.close)
            return member

        make.settings = settings  # type: ignore[attr-defined]
        yield make


@pytest.mark.slow
def test_a_static_member_comes_back_to_its_partitions_and_nobody_else_notices(static: Callable[..., Source]) -> None:
    settings: Settings = static.settings  # type: ignore[attr-defined]
    sink = Sink(settings)
    sent = len(fill(sink, settings, 30))
    changes: list[set[Partition]] = []
    stays, leaves = static("pod-0", on_assigned=changes.append, on_revoked=changes.append), static("pod-1")
    with Member(stays) as one, Member(leaves) as other:
        wait(lambda: bool(leaves.assignment()) and len(stays.assignment() | leaves.assignment()) == 3)
        wait(lambda: len({(r.partition, r.offset) for r in one.read + other.read}) == sent)
    mine = leaves.assignment()
    kept = stays.assignment()
    leaves.commit({place: end for place, end in ends(one.read + other.read).items() if place in mine})
    leaves.close()
    changes.clear()
    back = static("pod-1")
    with Member(stays) as one, Member(back) as other:
        wait(lambda: back.assignment() == mine)
        for future in [sink.send(settings.topic_documents, b"more-%d" % n, b"v") for n in range(30)]:
            future.result(PATIENCE_S)
        wait(lambda: len(one.read + other.read) >= 30)
    sink.close()
    assert changes == []
    assert stays.assignment() == kept
    assert sorted(record.key or b"" for record in one.read + other.read) == sorted(b"more-%d" % n for n in range(30))
    assert {(record.topic, record.partition) for record in other.read} <= mine


def test_a_name_has_one_member_and_the_earlier_can_commit_no_more(static: Callable[..., Source]) -> None:
    first = static("pod-0")
    until(first, lambda: len(first.assignment()) == 3)
    second = static("pod-0")
    until(second, lambda: len(second.assignment()) == 3)
    place = next(iter(second.assignment()))
    with pytest.raises(Fenced, match="BIOBRACKET_INGEST_INSTANCE") as error:
        first.commit({place: 0})
    assert not error.value.retryable
    second.commit({place: 0})


def test_a_session_that_the_broker_refuses_names_the_setting(static: Callable[..., Source]) -> None:
    with pytest.raises(StreamError, match="BIOBRACKET_INGEST_SESSION_S") as error:
        until(static("", session_s=3.0), lambda: False)
    assert not error.value.retryable
