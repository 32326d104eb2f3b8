"""The same contract on every broker: Apache Kafka, the embedded one, and noida-db where it is installed."""

from __future__ import annotations

import importlib.util
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.embedded import Broker
from shared import streams
from shared.settings import Settings
from shared.streams import Lag, Record, Sink, Source, StreamError, dead_letter_headers, ensure_topics

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


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(StreamError("kafka: gone", retryable=True)))
    assert (str(error), error.retryable) == ("kafka: gone", True)


def test_reasons_are_a_closed_list() -> None:
    with pytest.raises(ValueError, match="not_json"):
        dead_letter_headers(Record("t", 0, 0, None, None, 0), "whatever the document says")


@given(field=st.text(), name=st.text(), value=st.binary())
def test_dead_letters_keep_headers_and_take_no_text(field: str, name: str, value: bytes) -> None:
    record = Record("t", 1, 2, None, None, 3, ((name, value), ("biobracket.reason", b"old")))
    headers = dead_letter_headers(record, "invalid", field)
    told = [v for n, v in headers if n == "biobracket.field"]
    assert told in ([], [field.encode("utf-8", "replace")])
    assert [v for n, v in headers if n == "biobracket.reason"] == [b"invalid"]
    if not name.startswith("biobracket."):
        assert (name, value) in headers
    if any(character.isspace() for character in field):
        assert told == []
