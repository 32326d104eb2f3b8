"""The audit against real brokers and a real store, with records that never came out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
import redis
from typer.testing import CliRunner

from services.audit import Audit, AuditCounts, since_ms
from services.cli import cli
from services.ingest.admission import admit
from shared.backends import result_store, stored_results
from shared.backends.records import Headers, Record, position_of, replay_headers
from shared.backends.streams.scan import Scan
from shared.backends.streams.sink import Sink
from shared.backends.streams.topics import ensure_topics
from shared.errors import StreamError
from shared.messages import Extraction
from shared.settings import Settings
from tests.services.ingest.test_consumer import consume, document, extract, make, produce, read

LOST = "d-7"


class Forgetful(Sink):
    """A fault: what it is told to forget is acknowledged and never written."""

    def __init__(self, settings: Settings, *lost: str) -> None:
        super().__init__(settings)
        self._topic = settings.topic_entities
        self._lost = {id_.encode() for id_ in lost}

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Future[None]:
        if topic == self._topic and key in self._lost:
            done: Future[None] = Future()
            done.set_result(None)
            return done
        return super().send(topic, key, value, headers)


@pytest.fixture
def settings(each_broker: Settings) -> Settings:
    return each_broker


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs `biobracket audit`; exit status and output."""
    for name in ("kafka", "topic_documents", "topic_entities", "topic_dead_letters", "topic_feedback", "data"):
        monkeypatch.setenv(f"BIOBRACKET_{name.upper()}", str(getattr(settings, name)))
    monkeypatch.setenv("BIOBRACKET_REDIS", settings.redis.get_secret_value())
    monkeypatch.setenv("BIOBRACKET_INGEST_GROUP", settings.topic_documents)

    def audit(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["audit", *arguments])
        return result.exit_code, result.output

    return audit


def process(settings: Settings, values: list[bytes], *lost: str) -> None:
    """Sends the documents and processes them; of the lost ones neither store nor topic keeps anything."""
    produce(settings, values)
    consumer = make(settings, extract)
    consumer._open_sink = lambda: Forgetful(settings, *lost)
    asyncio.run(consume(consumer, len(values)))
    with redis.Redis.from_url(settings.redis.get_secret_value()) as client:
        for id_ in lost:
            assert client.delete(stored_results.document_key(id_))


def records(settings: Settings) -> list[Record]:
    """All of the documents topic."""
    scan = Scan(settings, settings.topic_documents)
    found = [record for batch in scan.read() for record in batch]
    scan.close()
    return found


def place(settings: Settings, value: bytes) -> tuple[tuple[str, int], int]:
    """Where a record stands."""
    return next(((r.topic, r.partition), r.offset) for r in records(settings) if r.value == value)


def count(settings: Settings, **options: bool) -> tuple[AuditCounts, list[tuple[tuple[str, int], int]]]:
    with Audit(settings, settings.topic_documents, settings.topic_documents) as audit:
        return audit.run(**options), list(audit.missing())


def test_what_never_came_out_is_named_and_heals(settings: Settings, run: Callable[..., tuple[int, str]]) -> None:
    values = [document(n) for n in range(40)]
    process(settings, [*values, b'{"id": "d-2"}', b'{"id": "d-3", "text": "t", "types": ["no"]}'], LOST)
    (topic, partition), offset = place(settings, document(7))
    status, said = run()
    assert (status, said.splitlines()) == (
        1,
        [
            f"missing: {topic}, partition {partition}, offset {offset}",
            f"{topic}, as far as group {topic} has committed it: 42 records, 39 results, 2 dead letters, 1 missing",
        ],
    )
    assert run("--since", "1h")[0] == 1
    assert run("--resend")[1].endswith("1 missing, 1 sent again\n")
    # Not committed yet, so not of what is audited; and then all is well, the old record too.
    assert run()[0] == 1
    asyncio.run(consume(make(settings, extract), 1))
    status, said = run()
    assert status == 0
    assert said.endswith("43 records, 41 results, 2 dead letters, 0 missing\n")


def test_either_place_will_do_and_only_the_version_itself(settings: Settings) -> None:
    process(settings, [document(n) for n in range(8)])
    with redis.Redis.from_url(settings.redis.get_secret_value()) as client:
        client.delete(stored_results.document_key("d-1"))  # it is on the topic
        newer = json.dumps({"id": "d-2", "text": "another"}).encode()
        produce(settings, [newer])
        consumer = make(settings, extract)
        consumer._open_sink = lambda: Forgetful(settings, "d-2")  # it is in the store
        asyncio.run(consume(consumer, 1))
        assert count(settings) == (AuditCounts(9, 9), [])
        client.delete(stored_results.document_key("d-2"))
    # The older version in both places is no result of the newer one.
    kept = result_store.ResultStore.from_settings(settings)
    kept.put(asyncio.run(extract(admit(document(2)))))
    kept.close()
    counts, missing = count(settings)
    assert counts == AuditCounts(9, 8, missing=1)
    assert missing == [place(settings, newer)]


def test_an_older_version_is_never_sent_behind_a_newer_one(settings: Settings) -> None:
    amended = [json.dumps({"id": LOST, "text": f"version {n}"}).encode() for n in range(3)]
    # All are of one key, and so of one partition.
    ensure_topics(settings)
    sink = Sink(settings)
    for value in amended:
        sink.send(settings.topic_documents, LOST.encode(), value).result(60)
    sink.close()
    consumer = make(settings, extract)
    consumer._open_sink = lambda: Forgetful(settings, LOST)
    asyncio.run(consume(consumer, 3))
    assert count(settings) == (AuditCounts(3, 1, superseded=2), [])
    with redis.Redis.from_url(settings.redis.get_secret_value()) as client:
        client.delete(stored_results.document_key(LOST))
    counts, missing = count(settings, resend=True)
    assert counts == AuditCounts(3, missing=3, resent=3)
    assert [offset for _, offset in missing] == [0, 1, 2]
    # Behind what is sent again, in the topic, comes what is not: the oldest version, which was sent by hand.
    sent = records(settings)
    assert [record.value for record in sent] == [*amended, *amended]
    sink = Sink(settings)
    sink.send(
        settings.topic_documents, LOST.encode(), amended[0], replay_headers(sent[0], position_of(sent[0]))
    ).result(60)
    sink.close()
    asyncio.run(consume(make(settings, extract), 4))
    kept = result_store.ResultStore.from_settings(settings)
    stored = kept.get(LOST)
    kept.close()
    assert stored is not None
    assert (stored.text_sha256, stored.source) == (admit(amended[2]).sha256, position_of(sent[2]))
    published = [Extraction.model_validate_json(r.value or b"") for r in read(settings, settings.topic_entities, 3)]
    assert published[-1] == stored
    assert count(settings) == (AuditCounts(7, 7), [])


def test_only_what_is_committed_and_not_older_is_audited(settings: Settings) -> None:
    process(settings, [document(n) for n in range(6)], "d-1")
    time.sleep(0.05)
    since = time.time_ns() // 1_000_000
    process(settings, [document(n) for n in range(6, 12)], LOST)
    produce(settings, [document(n) for n in range(12, 16)])  # nobody has read these
    assert count(settings)[0] == AuditCounts(12, 10, missing=2)
    with Audit(settings, settings.topic_documents, settings.topic_documents, since_ms=since) as audit:
        assert audit.run() == AuditCounts(6, 5, missing=1)
        assert list(audit.missing()) == [place(settings, document(7))]


def test_a_group_that_committed_nothing_lacks_nothing(settings: Settings) -> None:
    produce(settings, [document(n) for n in range(3)])
    assert count(settings) == (AuditCounts(), [])


def test_a_topic_that_is_not_there_is_told(settings: Settings, run: Callable[..., tuple[int, str]]) -> None:
    with pytest.raises(StreamError, match="has no topic"):
        Scan(settings, "nowhere")
    status, said = run("--topic", "nowhere")
    assert (status, "has no topic nowhere" in said) == (1, True)
    status, said = run("--since", "yesterday")
    assert (status, "since: neither" in said) == (1, True)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("90m", 1_000_000_000 - 90 * 60),
        ("12h", 1_000_000_000 - 12 * 3600),
        ("7d", 1_000_000_000 - 7 * 86400),
        ("1970-01-02", 86400),
        ("1970-01-01T01:00:00+01:00", 0),
        ("2001-09-09T01:46:40Z", 1_000_000_000),
    ],
)
def test_times(told: str, expected: int) -> None:
    assert since_ms(told, 1_000_000_000.0) == expected * 1000
