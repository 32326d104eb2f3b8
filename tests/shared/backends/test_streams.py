"""The same contract on every broker: Apache Kafka, the embedded one, and noida-db where it is installed."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kafka import KafkaConsumer

from services.embedded.servers import Broker
from shared.backends import streams
from shared.backends.records import Record, dead_letter_headers
from shared.backends.streams import Lag, Scan, Sink, Source, ensure_topics
from shared.errors import MixedAssignors, Rebalancing, StreamError
from shared.settings import Settings
from tests.support.kafka import Eager, Kafka

PATIENCE_S = 90.0


class Noida(Broker):
    """noida-db, another server that speaks the Kafka protocol; it keeps its records in its folder."""

    name = "noida"

    def _command(self) -> list[str]:
        spec = importlib.util.find_spec("noida_db")
        assert spec is not None
        assert spec.origin is not None
        binary = Path(spec.origin).parent / "noida-db"
        binary.chmod(0o755)
        return [str(binary), "start", "--data-dir", ".", "--only", "kafka", "--kafka-port", str(self.port)]


needs_noida = pytest.mark.skipif(importlib.util.find_spec("noida_db") is None, reason="noida-db is not installed")


@pytest.fixture(scope="module", params=["kafka", "tansu", pytest.param("noida", marks=needs_noida)])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param != "noida":
        yield request.getfixturevalue({"kafka": "kafka", "tansu": "broker"}[request.param]).url
        return
    with Noida(tmp_path_factory.mktemp("noida")) as server:
        yield server.url


@pytest.fixture
def stream(address: str, fresh: Callable[[str], Settings]) -> Settings:
    """Settings with the test's own topics, created."""
    settings = fresh(address)
    ensure_topics(settings)
    return settings


@pytest.fixture
def sink(stream: Settings) -> Iterator[Sink]:
    producer = Sink(stream)
    yield producer
    producer.close()


@pytest.fixture
def source(stream: Settings) -> Iterator[Callable[..., Source]]:
    """Makes members of one group on the documents topic, which are closed at the end.

    The group is the test's own: Tansu can keep a dead leader, and then later members of a group get no partitions.
    """
    members: list[Source] = []

    def make(**callbacks: streams.Callback) -> Source:
        members.append(Source(stream, stream.topic_documents, [stream.topic_documents], **callbacks))
        return members[-1]

    yield make
    for member in members:
        member.close()


def _fill(sink: Sink, settings: Settings, count: int) -> dict[bytes, bytes]:
    sent = {f"key-{n}".encode(): f"值 {n}".encode() for n in range(count)}
    for future in [sink.send(settings.topic_documents, key, value) for key, value in sent.items()]:
        future.result(PATIENCE_S)
    return sent


def _read(source: Source, count: int) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(records) < count and time.monotonic() < deadline:
        records += source.poll(0.5, 100)
    return records


def _until(source: Source, condition: Callable[[], bool]) -> None:
    """Polls, of a topic without records, until the group has settled so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        assert source.poll(0.2, 100) == []
    assert condition()


def _ends(records: list[Record]) -> dict[streams.Partition, int]:
    ends: dict[streams.Partition, int] = {}
    for record in records:
        place = record.topic, record.partition
        ends[place] = max(ends.get(place, 0), record.offset + 1)
    return ends


def test_records_arrive_as_they_were_sent(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    before = time.time_ns() // 1_000_000
    headers = (("a", b"1"), ("a", b"\x00\xff"))
    sink.send(stream.topic_documents, b"k", "患者".encode(), headers).result(PATIENCE_S)
    (record,) = _read(source(), 1)
    assert (record.key, record.value, record.headers) == (b"k", "患者".encode(), headers)
    assert record.topic == stream.topic_documents
    assert record.offset == 0
    assert record.timestamp_ms >= before


def test_records_of_a_key_keep_their_order(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    sent = [f"{n}".encode() for n in range(200)]
    for value in sent:
        sink.send(stream.topic_documents, b"one", value)
    sink.flush(PATIENCE_S)
    records = _read(source(), len(sent))
    assert [record.value for record in records] == sent
    assert len({record.partition for record in records}) == 1


def test_a_record_of_ten_megabytes_passes(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    value = bytes(range(256)) * 40_000
    sink.send(stream.topic_documents, b"big", value).result(PATIENCE_S)
    sink.send(stream.topic_documents, b"big", b"next").result(PATIENCE_S)
    assert [record.value for record in _read(source(), 2)] == [value, b"next"]


def test_a_record_above_the_limit_is_refused(stream: Settings, sink: Sink) -> None:
    future = sink.send(stream.topic_documents, b"k", bytes(stream.max_message_bytes + 100_000))
    with pytest.raises(StreamError, match="max_message_bytes") as refused:
        future.result(PATIENCE_S)
    assert not refused.value.retryable


def test_keyless_and_empty_records_pass(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    for key, value in ((None, b"v"), (b"k", None), (b"k", b""), (None, None)):
        sink.send(stream.topic_documents, key, value).result(PATIENCE_S)
    assert {(record.key, record.value) for record in _read(source(), 4)} == {
        (None, b"v"),
        (b"k", None),
        (b"k", b""),
        (None, b""),
    }


def test_a_group_goes_on_where_it_committed(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    _fill(sink, stream, 30)
    first = source()
    records = _read(first, 30)
    done, open_ = _ends(records), records[-1]
    done[open_.topic, open_.partition] = open_.offset
    first.commit(done)
    first.close()
    again = _read(source(), 1)
    assert [(record.partition, record.offset) for record in again] == [(open_.partition, open_.offset)]


def test_what_was_not_committed_comes_again(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    sent = _fill(sink, stream, 10)
    first = source()
    assert len(_read(first, 10)) == 10
    first.close()
    assert {record.key for record in _read(source(), 10)} == set(sent)


def test_poll_gives_no_more_than_asked(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    _fill(sink, stream, 20)
    member = source()
    seen: list[Record] = []
    while len(seen) < 20:
        records = member.poll(5.0, 3)
        assert len(records) <= 3
        seen += records


def test_paused_partitions_rest_and_others_go_on(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    member = source()
    _until(member, lambda: len(member.assignment()) == 3)
    resting = stream.topic_documents, 1
    member.pause([resting, ("gone", 0)])
    assert member.paused() == {resting}
    _fill(sink, stream, 30)
    seen: list[Record] = []
    while batch := member.poll(3.0, 100):
        seen += batch
    assert {record.partition for record in seen} <= {0, 2}
    member.resume([resting])
    assert member.paused() == set()
    seen += _read(member, 30 - len(seen))
    assert len({record.key for record in seen}) == 30


def test_lag_falls_to_zero(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    _fill(sink, stream, 12)
    member = source()
    records = _read(member, 12)
    assert len(records) == 12
    assert member.lag() == 0
    assert member.lag(committed=True) == 12
    member.commit(_ends(records))
    assert member.lag(committed=True) == 0


def test_lag_counts_what_waits(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    for n in range(10):
        sink.send(stream.topic_documents, b"one", b"%d" % n).result(PATIENCE_S)
    member = source()
    first: list[Record] = []
    while not first:
        first = member.poll(1.0, 4)
    assert member.lag() == 10 - len(first)


def test_lag_of_a_group_is_seen_from_outside(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    outside = Lag(stream, stream.topic_documents, stream.topic_documents)
    assert outside.read() == 0
    _fill(sink, stream, 12)
    assert outside.read() == 12
    member = source()
    member.commit(_ends(_read(member, 12)))
    assert outside.read() == 0
    sink.send(stream.topic_documents, b"k", b"v").result(PATIENCE_S)
    assert outside.read() == 1
    outside.close()


def test_a_scan_reads_what_is_there_from_outside_any_group(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    scan = Scan(stream, stream.topic_documents)
    assert [record for batch in scan.read() for record in batch] == []
    for n in range(6):
        sink.send(stream.topic_documents, b"one", b"%d" % n).result(PATIENCE_S)
        time.sleep(0.02)  # else time stamps are the same
    everything = [record for batch in scan.read() for record in batch]
    assert [record.value for record in everything] == [b"%d" % n for n in range(6)]
    assert scan.progress() == (6, 6)
    place, since = everything[0].partition, everything[2].timestamp_ms
    assert [record.value for batch in scan.read({place: 4}, since_ms=since) for record in batch] == [b"2", b"3"]
    assert [record for batch in scan.read(since_ms=since + 3_600_000) for record in batch] == []
    assert scan.committed(stream.topic_documents) == {}
    member = source()
    _read(member, 6)
    member.commit({(stream.topic_documents, place): 3})
    assert scan.committed(stream.topic_documents) == {place: 3}
    scan.close()


def test_callbacks_tell_of_partitions_and_may_commit(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    _fill(sink, stream, 30)
    came: list[set[streams.Partition]] = []
    went: list[set[streams.Partition]] = []
    ends: dict[streams.Partition, int] = {}

    def revoked(partitions: set[streams.Partition]) -> None:
        went.append(partitions)
        first.commit(ends)

    first = source(on_assigned=came.append, on_revoked=revoked)
    ends |= _ends(_read(first, 30))
    everything = {(stream.topic_documents, n) for n in range(3)}
    assert came == [everything]
    first.close()
    assert went == [everything]
    second = source()
    _until(second, lambda: second.assignment() == everything)
    assert second.poll(2.0, 100) == []


class Member:
    """A source that polls in a thread of its own, as a replica's does."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.read: list[Record] = []
        self._done = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._work = self._thread.submit(self._poll)

    def _poll(self) -> None:
        while not self._done.is_set():
            self.read += self.source.poll(0.2, 10)

    def stop(self) -> None:
        self._done.set()
        self._work.result()
        self._thread.shutdown()

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _places(records: list[Record]) -> list[tuple[int, int]]:
    return sorted((record.partition, record.offset) for record in records)


@pytest.mark.slow
def test_a_rebalance_takes_only_what_goes_and_what_was_committed_stays_read(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    sent = len(_fill(sink, stream, 30))
    went: list[set[streams.Partition]] = []
    done: dict[streams.Partition, int] = {}

    def revoked(partitions: set[streams.Partition]) -> None:
        went.append(partitions)
        first.commit({each: done[each] for each in partitions})

    first = source(on_revoked=revoked)
    records = _read(first, sent)
    done |= _ends(records)
    resting = set(first.assignment())
    first.pause(resting)
    with Member(first) as one, Member(source()) as other:
        _wait(lambda: 0 < len(other.source.assignment()) < 3 and len(first.assignment()) < 3)
        stayed = first.assignment()
        assert went == [other.source.assignment()]
        assert stayed | went[0] == resting
        # What stays keeps its pause and its position; what went starts where it was committed.
        assert first.paused() == stayed
        first.resume(stayed)
        more = [sink.send(stream.topic_documents, b"more-%d" % n, b"v") for n in range(30)]
        for future in more:
            future.result(PATIENCE_S)
        _wait(lambda: len(one.read) + len(other.read) >= 30)
    assert {record.key for record in one.read + other.read} == {b"more-%d" % n for n in range(30)}
    assert len(one.read + other.read) == 30


@pytest.mark.slow
def test_what_was_dropped_is_read_again_whatever_the_client_keeps(
    stream: Settings, sink: Sink, source: Callable[..., Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an eager assignor everything is revoked, and the client then goes on behind what was read."""
    monkeypatch.setattr(streams, "_Assignor", Eager)
    sent = len(_fill(sink, stream, 30))
    went: list[set[streams.Partition]] = []
    first = source(on_revoked=went.append)
    before = _read(first, sent)
    undone = {(stream.topic_documents, p): 4 for p in range(3)}
    first.commit(undone)
    with Member(first) as one, Member(source()) as other:
        _wait(lambda: 0 < len(other.source.assignment()) < 3 and len(first.assignment()) < 3)
        expected = [place for place in _places(before) if place[1] >= 4]
        _wait(lambda: len(one.read) + len(other.read) >= len(expected))
        assert first.assignment()
    assert went[0] == {(stream.topic_documents, p) for p in range(3)}
    assert sorted(set(_places(one.read + other.read))) == expected


@pytest.mark.slow
def test_each_topic_is_shared_out_evenly(stream: Settings, source: Callable[..., Source]) -> None:
    """Whoever joins gets documents, and not the partitions of feedback alone."""
    topics = [stream.topic_documents, stream.topic_feedback]
    members = [Member(Source(stream, "g-" + stream.topic_documents, topics)) for _ in range(3)]
    everything = {(topic, p) for topic in topics for p in range(3)}

    def settled() -> bool:
        shares = [member.source.assignment() for member in members]
        return set().union(*shares) == everything and all(
            sorted(topic for topic, _ in share) == sorted(topics) for share in shares
        )

    _wait(settled)
    assert [len(member.source.assignment()) for member in members] == [2, 2, 2]
    for member in members:
        member.stop()
        member.source.close()


def test_a_rewound_partition_is_read_from_its_committed_offset(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    sent = len(_fill(sink, stream, 30))
    member = source()
    before = _places(_read(member, sent))
    zero, one = (stream.topic_documents, 0), (stream.topic_documents, 1)
    member.commit({one: 3})
    member.rewind([zero, one, ("gone", 0)])
    expected = [(p, o) for p, o in before if p == 0 or (p == 1 and o >= 3)]
    assert _places(_read(member, len(expected))) == expected
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
    sent = len(_fill(sink, stream, 30))
    went: list[set[streams.Partition]] = []

    def revoked(partitions: set[streams.Partition]) -> None:
        went.append(partitions)
        first.commit(ends)  # comes too late

    first = source(on_revoked=revoked)
    before = _read(first, sent)
    ends = _ends(before)
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
        _wait(lambda: other.source.assignment() == everything and len(other.read) == sent)
        silent.clear()
        with pytest.raises(Rebalancing):
            first.commit(ends)
        with Member(first) as one:
            _wait(lambda: bool(went) and 0 < len(first.assignment()) < 3)
            assert went[0] == everything
            _wait(lambda: len(first.assignment() | other.source.assignment()) == 3)
            back = first.assignment()
            _wait(lambda: len(one.read) >= len([r for r in before if (r.topic, r.partition) in back]))
    assert _places(other.read)[:sent] == _places(before)
    assert set(_places(one.read)) <= set(_places(before))
    again = Lag(stream, stream.topic_documents, stream.topic_documents)
    assert again.read() == sent
    again.close()


def test_a_closed_member_is_gone_at_once_and_its_last_commit_counts(
    stream: Settings, sink: Sink, source: Callable[..., Source]
) -> None:
    sent = len(_fill(sink, stream, 30))
    first = source(on_revoked=lambda _: first.commit(ends))
    ends = _ends(_read(first, sent))
    del ends[stream.topic_documents, 0]
    first.close()
    first.close()
    second = source()
    _until_assigned = _read(second, 1)
    _wait(lambda: len(second.assignment()) == 3)
    assert {record.partition for record in _until_assigned + second.poll(1.0, 100)} == {0}


def test_lag_is_that_of_the_newest_fetch(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    member = source()
    _until(member, lambda: len(member.assignment()) == 3)
    member.poll(1.0, 10)
    assert member.lag() == 0
    member.pause(member.assignment())
    member.poll(0.5, 10)
    _fill(sink, stream, 12)
    assert member.poll(1.0, 10) == []
    before = member.lag()
    assert before <= 12  # a fetch may have been under way
    member.resume(member.paused())
    _read(member, 12)
    assert (member.lag(), member.lag(committed=True)) == (0, 12)


def test_members_of_the_old_version_keep_this_one_out(kafka: Kafka, fresh: Callable[[str], Settings]) -> None:
    settings = fresh(kafka.url)
    ensure_topics(settings)
    old = KafkaConsumer(
        bootstrap_servers=[settings.kafka], group_id="g-" + settings.topic_documents, session_timeout_ms=6000
    )
    old.subscribe([settings.topic_documents])
    _wait(lambda: not old.poll(timeout_ms=200) and len(old.assignment()) == 3)
    member = Source(settings, "g-" + settings.topic_documents, [settings.topic_documents])
    with pytest.raises(MixedAssignors, match="stop every consumer of the old version") as refused:
        member.poll(PATIENCE_S, 1)
    assert refused.value.retryable
    old.close()
    _until(member, lambda: len(member.assignment()) == 3)
    member.close()


@pytest.mark.slow
def test_two_members_share_and_lose_nothing(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    sent = set(_fill(sink, stream, 60))
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


def test_topics_are_made_once(stream: Settings, source: Callable[..., Source]) -> None:
    ensure_topics(stream)
    member = source()
    _until(member, lambda: len(member.assignment()) == 3)
    assert member.assignment() == {(stream.topic_documents, n) for n in range(3)}


def test_a_rejoin_that_outlives_a_poll_is_finished(stream: Settings, source: Callable[..., Source]) -> None:
    """The client forgets one that only changed metadata called for, and would neither read nor send heartbeats."""
    ensure_topics(stream)
    member = source()
    _until(member, lambda: len(member.assignment()) == 3)
    coordinator = member._consumer._coordinator
    coordinator._assignment_snapshot = {}  # as if the topic were new to the leader
    _wait(lambda: member.poll(0.0, 1) == [] and coordinator.rebalance_in_progress())
    _wait(lambda: coordinator._join_task.is_done)
    _until(member, lambda: not coordinator.rebalance_in_progress())
    assert len(member.assignment()) == 3


def test_a_dead_letter_can_be_replayed(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    sink.send(stream.topic_documents, b"k", b"\xff not json", (("trace", b"1"),)).result(PATIENCE_S)
    (record,) = _read(source(), 1)
    headers = dead_letter_headers(record, "not_json")
    sink.send(stream.topic_dead_letters, record.key, record.value, headers).result(PATIENCE_S)
    dead = Source(stream, "dead", [stream.topic_dead_letters])
    (letter,) = _read(dead, 1)
    dead.close()
    assert (letter.key, letter.value) == (record.key, record.value)
    told = dict(letter.headers)
    assert told["biobracket.reason"] == b"not_json"
    assert told["biobracket.topic"].decode() == stream.topic_documents
    assert (int(told["biobracket.partition"]), int(told["biobracket.offset"])) == (record.partition, record.offset)
    assert told["trace"] == b"1"


@needs_noida
@pytest.mark.slow
def test_work_resumes_when_the_broker_comes_back(tmp_path: Path, fresh: Callable[[str], Settings]) -> None:
    server = Noida(tmp_path)
    server.start()
    settings = fresh(server.url)
    ensure_topics(settings)
    sink = Sink(settings)
    source = Source(settings, "g", [settings.topic_documents])
    sent = set(_fill(sink, settings, 5))
    seen = {record.key for record in _read(source, 5)}
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


def test_no_broker_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CONNECT_MS", 300)
    settings = Settings(
        kafka="127.0.0.1:1",
        kafka_security={"sasl_plain_username": "u", "sasl_plain_password": "secret-word"},
    )
    for call in (
        lambda: ensure_topics(settings),
        lambda: Source(settings, "g", ["t"]),
        lambda: Sink(settings),
    ):
        with pytest.raises(StreamError, match="BIOBRACKET_KAFKA") as failed:
            call()
        assert failed.value.retryable
        assert "127.0.0.1:1" in str(failed.value)
        assert "secret-word" not in str(failed.value)


def test_commits_of_partitions_that_went_are_passed_over(stream: Settings, source: Callable[..., Source]) -> None:
    member = source()
    _until(member, lambda: len(member.assignment()) == 3)
    member.commit({("gone", 0): 7})
    member.commit({})
    assert member.assignment() == {(stream.topic_documents, n) for n in range(3)}


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(StreamError, match="sasl_word") as failed:
        Sink(Settings(kafka_security={"sasl_word": "secret-word"}))
    assert not failed.value.retryable
    assert "secret-word" not in str(failed.value)
