"""The consumer on a real broker and a real store, with an extractor made of one regular expression.

Run as a program, this file is a consumer that can be killed; its settings come from the environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path

import pytest
from kafka import KafkaProducer
from pydantic import SecretStr

from services.embedded.servers import Valkey
from services.ingest.config import IngestConfig
from services.ingest.consumer import Consumer, Process
from shared.backends.feedback_store import FeedbackStore
from shared.backends.halt_store import HaltStore
from shared.backends.records import Record, origin
from shared.backends.result_store import ResultStore
from shared.backends.streams import client
from shared.backends.streams.scan import Lag, Scan
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Membership, Source
from shared.backends.streams.topics import ensure_topics
from shared.errors import DocumentError, Fenced, Overloaded
from shared.messages import Document, Entity, Erasure, Extraction, check_offsets, entity_id
from shared.runtime.metrics import UNKNOWN_FIELDS
from shared.settings import Settings
from shared.text.language import detect
from tests.support.kafka import Kafka, change_batches, damage

PATIENCE_S = 300.0


class Outage(Exception):
    """What a replica that is not there looks like here."""


class Death(Exception):
    """What a process that died looks like here."""


async def extract(document: Document) -> Extraction:
    text = document.text
    return Extraction(
        document_id=document.id,
        text_sha256=document.sha256,
        lang=document.lang or detect(text),
        types=("dna",),
        entities=tuple(
            Entity(
                id=entity_id("dna", *match.span()),
                start=match.start(),
                end=match.end(),
                text=match[0],
                type="dna",
                confidence=1.0,
                generator_confidence=1.0,
            )
            for match in re.finditer(r"CD\d+", text)
        ),
        model_revision="r1",
    )


def make(settings: Settings, process: Process, **config: object) -> Consumer:
    topics = [settings.topic_documents, settings.topic_feedback]
    defaults: dict[str, object] = {
        "group": settings.topic_documents,
        "session_s": 6.0,
        "commit_s": 0.1,
        "backoff_s": 0.02,
        "backoff_max_s": 0.2,
    }
    chosen = IngestConfig.model_validate(defaults | config)
    membership = Membership(chosen.session_s, chosen.heartbeat_s, chosen.instance)
    return Consumer(
        open_source=lambda revoked: Source(settings, chosen.group, topics, membership=membership, on_revoked=revoked),
        open_sink=partial(Sink, settings),
        store=ResultStore.from_settings(settings),
        feedback=FeedbackStore.from_settings(settings),
        process=process,
        settings=settings,
        config=chosen,
        halts=HaltStore(settings, chosen.group),
        transient=(Outage,),
        crashes=(Death,),
    )


@asynccontextmanager
async def running(consumer: Consumer) -> AsyncIterator[Consumer]:
    task = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        await task
        consumer._store.close()
        consumer._feedback.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def caught_up(consumer: Consumer, count: int) -> None:
    """Waits until so many records are done and none waits, seen from outside: a member does not know at once."""
    settings = consumer._settings
    lag = await asyncio.to_thread(Lag, settings, consumer._config.group, settings.topic_documents)
    deadline = time.monotonic() + PATIENCE_S
    while _done(consumer) < count or await asyncio.to_thread(lag.read):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    await asyncio.to_thread(lag.close)


def _done(consumer: Consumer) -> int:
    status = consumer.status()
    return status.processed + status.dead_lettered


def _committed(consumer: Consumer, topic: str) -> int:
    return sum(offset for name, offset in consumer.status().committed.items() if name.startswith(topic))


def document(n: int) -> bytes:
    text = f"第{n}例患者 CD{n} 阳性。" if n % 2 else f"Case {n}: CD{n} binds CD28 😀."
    return json.dumps({"id": f"d-{n}", "text": text}, ensure_ascii=False).encode()


def produce(settings: Settings, values: list[bytes]) -> None:
    ensure_topics(settings)
    sink = Sink(settings)
    for future in [sink.send(settings.topic_documents, b"%d" % n, value) for n, value in enumerate(values)]:
        future.result(PATIENCE_S)
    sink.close()


def read(settings: Settings, topic: str, count: int) -> list[Record]:
    """All records of a topic, at least so many."""
    source = Source(settings, uuid.uuid4().hex, [topic])
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(records) < count and time.monotonic() < deadline:
        records += source.poll(0.5, 1000)
    more = source.poll(2.0, 1000)
    source.close()
    return records + more


def check_results(settings: Settings, numbers: range) -> list[Record]:
    """Every document is in the store, and last so on the entities topic, under one key; the records of the topic."""
    store = ResultStore.from_settings(settings)
    keys: dict[str, set[bytes]] = {}
    last: dict[str, Extraction] = {}
    records = read(settings, settings.topic_entities, len(numbers))
    for record in records:
        extraction = Extraction.model_validate_json(record.value or b"")
        assert record.key == extraction.document_id.encode()
        assert dict(record.headers)["key"] == extraction.key.encode()
        last[extraction.document_id] = extraction
        keys.setdefault(extraction.document_id, set()).add(dict(record.headers)["key"])
    assert keys.keys() == {f"d-{n}" for n in numbers}
    assert all(len(each) == 1 for each in keys.values())
    assert store.counts()["documents"] == len(numbers)
    for n in numbers:
        stored = store.get(f"d-{n}")
        assert stored is not None
        assert stored == last[f"d-{n}"]
        assert f"CD{n}" in {entity.text for entity in stored.entities}
        text = json.loads(document(n))["text"]
        assert all(check_offsets(text, entity) for entity in stored.entities)
    store.close()
    return records


async def consume(consumer: Consumer, count: int) -> None:
    async with running(consumer):
        await caught_up(consumer, count)


def test_every_document_comes_out_and_poison_is_set_aside(settings: Settings) -> None:
    poison = {
        b"not json": "not_json",
        b"\xff\xfe": "not_json",
        b"[]": "invalid",
        b"": "empty",
        b'{"text": "no id"}': "invalid",
        b'{"id": "d"}': "invalid",
        b'{"id": "d", "text": 5}': "invalid",
        b'{"id": "d", "text": "\\ud800"}': "invalid",
        b'{"id": "d", "text": "t", "lang": "fr"}': "invalid",
        b'{"id": "d", "text": "t", "types": ["no"]}': "unknown_type",
        b'{"id": "' + b"x" * 10_000_000 + b'", "text": "t"}': "invalid",
    }
    values = [document(n) for n in range(40)]
    for place, value in enumerate(poison):
        values.insert(3 * place, value)
    produce(settings, values)
    consumer = make(settings, extract)
    asyncio.run(consume(consumer, len(values)))
    status = consumer.status()
    assert (status.processed, status.dead_lettered, status.lag) == (40, len(poison), 0)
    assert (status.in_flight, status.in_flight_bytes, status.paused) == (0, 0, False)
    assert len(check_results(settings, range(40))) == 40
    letters = read(settings, settings.topic_dead_letters, len(poison))
    assert {letter.value: dict(letter.headers)["biobracket.reason"].decode() for letter in letters} == poison
    assert all(dict(letter.headers)["biobracket.topic"].decode() == settings.topic_documents for letter in letters)
    fields = {letter.value: dict(letter.headers).get("biobracket.field") for letter in letters}
    assert fields[b'{"id": "d"}'] == b"text"


def test_a_document_erased_in_flight_leaves_no_dead_letter(settings: Settings) -> None:
    """The erasure waits for nobody; whoever fails later is told."""
    settings = settings.model_copy(update={"partitions": 1})
    ensure_topics(settings)
    sink = Sink(settings)
    ids = {"fails": "d-1", "works": "d-3"}
    sink.send(settings.topic_documents, b"d-1", document(1)).result(PATIENCE_S)
    sink.send(settings.topic_documents, b"d-3", document(3)).result(PATIENCE_S)
    for key in (b"d-1", b"d-3", b"\xff"):
        sink.send(settings.topic_documents, key, None).result(PATIENCE_S)
    sink.close()
    store = ResultStore.from_settings(settings)

    async def process(given: Document) -> Extraction:
        await until(lambda: all(isinstance(each, Erasure) for each in store.newest(list(ids.values()))))
        if given.id == ids["fails"]:
            raise ValueError
        return await extract(given)

    consumer = make(settings, process, attempts=1)
    asyncio.run(consume(consumer, 5))
    assert (consumer.status().processed, consumer.status().dead_lettered) == (4, 1)
    (letter,) = read(settings, settings.topic_dead_letters, 1)
    assert (letter.key, dict(letter.headers)["biobracket.field"]) == (b"\xff", b"key")
    entities = read(settings, settings.topic_entities, 2)
    assert {(record.key, record.value) for record in entities} == {(b"d-1", None), (b"d-3", None)}
    assert store.counts() == {"documents": 0, "entities": 0}
    store.close()


def test_a_document_that_kills_its_process_is_found_and_the_others_come_out(settings: Settings) -> None:
    """All that a process has in hand dies with it."""
    deadly, count = {7, 30}, 40
    deaths = 0
    alive = asyncio.Event()

    async def process(document: Document) -> Extraction:
        nonlocal deaths, alive
        mine = alive
        if int(document.id[2:]) in deadly:
            await asyncio.sleep(0.02)
            if mine is alive:
                deaths += 1
                alive = asyncio.Event()
                mine.set()
            raise Death
        with suppress(TimeoutError):
            await asyncio.wait_for(mine.wait(), 0.1)
            raise Death
        return await extract(document)

    produce(settings, [document(n) for n in range(count)])
    consumer = make(settings, process, max_documents=16, attempts=4)
    asyncio.run(consume(consumer, count))
    assert (consumer.status().processed, consumer.status().dead_lettered) == (count - 2, 2)
    letters = read(settings, settings.topic_dead_letters, 2)
    assert {letter.value for letter in letters} == {document(n) for n in deadly}
    assert {dict(letter.headers)["biobracket.reason"] for letter in letters} == {b"crashed"}
    assert deaths <= 2 * (4 + 4 + 1)


def test_too_many_dead_letters_halt_the_group_until_somebody_says_go_on(settings: Settings) -> None:
    settings = settings.model_copy(update={"partitions": 1})
    produce(settings, [b"not json"] * 6 + [document(n) for n in range(4)])
    consumer = make(settings, extract, breaker_run=5, max_documents=1)
    halts = HaltStore(settings, settings.topic_documents)

    async def work() -> None:
        async with running(consumer):
            await until(lambda: consumer.status().halted is not None)
            assert halts.halted() == consumer.status().halted
            stopped = _done(consumer)
            await asyncio.sleep(1.0)
            assert _done(consumer) == stopped
        # Another one, as after a restart, does not begin.
        async with running(again):
            await until(lambda: again.status().halted is not None)
            assert "dead-letters resume" in (again.status().problem or "")
            assert _done(again) == 0
            halts.lift()
            await until(lambda: _done(again) == 10 - stopped)
            assert again.status().halted is None

    again = make(settings, extract, breaker_run=5)
    asyncio.run(work())
    halts.close()


def test_a_broker_that_is_away_is_told(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"kafka": "127.0.0.1:1"})
    consumer = make(nowhere, extract)

    async def work() -> None:
        async with running(consumer):
            await until(lambda: consumer.status().problem is not None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "CONNECT_MS", 200)
        asyncio.run(work())
    assert "BIOBRACKET_KAFKA" in (consumer.status().problem or "")


@pytest.mark.slow
def test_a_batch_that_cannot_be_read_goes_to_the_dead_letters(
    kafka: Kafka, valkey: Valkey, tmp_path: Path, fresh: Callable[[str], Settings]
) -> None:
    with Kafka(tmp_path) as server:
        store = SecretStr(valkey.url)
        settings = fresh(server.url).model_copy(update={"redis": store, "partitions": 1})
        ResultStore.from_settings(settings)._client.flushall()
        ensure_topics(settings)
        sink = Sink(settings)
        for n in range(6):  # one a batch
            sink.send(settings.topic_documents, b"k", document(n)).result(PATIENCE_S)
        sink.close()
        change_batches(server, settings.topic_documents, damage, 2, 5)
        settings = settings.model_copy(update={"kafka": server.url})
        asyncio.run(consume(make(settings, extract), 6))
        letters = read(settings, settings.topic_dead_letters, 2)
        letters.sort(key=lambda letter: dict(letter.headers)["biobracket.offset"])
        assert [dict(letter.headers)["biobracket.reason"] for letter in letters] == [b"unreadable"] * 2
        assert [position.offset for letter in letters if (position := origin(letter))] == [2, 5]
        assert [document(n)[:20] in (letter.value or b"") for n, letter in zip((2, 5), letters, strict=True)] == [
            True
        ] * 2
        found = ResultStore.from_settings(settings)
        assert [n for n in range(6) if found.get(f"d-{n}") is None] == [2, 5]
        found.close()


@pytest.mark.parametrize("given", [None, -1])
def test_feedback_without_a_time_counts_from_its_arrival(settings: Settings, given: int | None) -> None:
    ensure_topics(settings)
    producer = KafkaProducer(bootstrap_servers=settings.kafka)
    producer.send(settings.topic_feedback, json.dumps(OPINION).encode(), timestamp_ms=given).get(PATIENCE_S)
    producer.close()
    consumer = make(settings, extract)

    async def work() -> None:
        async with running(consumer):
            await until(lambda: _committed(consumer, settings.topic_feedback) == 1)

    asyncio.run(work())
    store = FeedbackStore.from_settings(settings)
    (kept,) = store.page().feedback
    assert kept.time > 1.7e9
    store.close()


OPINION = {"id": "o", "text": "a cold room", "start": 2, "end": 6, "type": "disease", "accepted": False}


def test_feedback_is_a_dead_letter_where_no_text_is_kept(settings: Settings) -> None:
    settings = settings.model_copy(update={"store_text": "none"})
    produce(settings, [document(0)])
    with closing(Sink(settings)) as sink:
        sink.send(settings.topic_feedback, b"o", json.dumps(OPINION).encode()).result(PATIENCE_S)
    consumer = make(settings, extract)

    async def work() -> None:
        async with running(consumer):
            await until(lambda: consumer.status().dead_lettered == 1)

    asyncio.run(work())
    with closing(Scan(settings, settings.topic_dead_letters)) as scan:
        (letter,) = [record for records in scan.read() for record in records]
    assert dict(letter.headers)["biobracket.field"] == b"text"


def test_feedback_reaches_the_store(settings: Settings) -> None:
    store = FeedbackStore.from_settings(settings)
    wrong = [b"\xff", json.dumps(OPINION | {"end": 99}).encode(), json.dumps(OPINION | {"type": "weather"}).encode()]
    produce(settings, [document(0)])
    sink = Sink(settings)
    for key, value in [
        *((b"w", value) for value in wrong),
        (b"o", json.dumps(OPINION).encode()),
        (b"p", json.dumps(OPINION | {"id": "p"}).encode()),
        (b"p", None),
        (b"never given", None),
    ]:
        sink.send(settings.topic_feedback, key, value).result(PATIENCE_S)
    sink.close()
    consumer = make(settings, extract)

    async def work() -> None:
        async with running(consumer):
            await until(lambda: _committed(consumer, settings.topic_feedback) == 7 and _done(consumer) == 4)

    asyncio.run(work())
    (kept,) = store.page().feedback
    assert (kept.id, kept.mention, kept.accepted) == ("o", "cold", False)
    assert kept.time > 1.7e9  # of the record
    letters = read(settings, settings.topic_dead_letters, len(wrong))
    told = [(dict(r.headers)["biobracket.reason"], dict(r.headers).get("biobracket.field")) for r in letters]
    assert sorted(told) == [(b"invalid", b"end"), (b"not_json", b"feedback"), (b"unknown_type", b"type")]
    assert {dict(r.headers)["biobracket.topic"].decode() for r in letters} == {settings.topic_feedback}
    # The whole topic read again, by a group that never was there, changes nothing.
    again = make(settings, extract, group="again-" + settings.topic_feedback)

    async def work_again() -> None:
        async with running(again):
            await until(lambda: _committed(again, settings.topic_feedback) == 7)

    asyncio.run(work_again())
    assert store.page().feedback == (kept,)
    store.close()


def test_ten_megabytes_of_text_pass(settings: Settings) -> None:
    text = "CD28 " + "x" * 10_000_000
    produce(settings, [json.dumps({"id": "big", "text": text}).encode(), document(1)])
    asyncio.run(consume(make(settings, extract), 2))
    assert {record.key for record in read(settings, settings.topic_entities, 2)} == {b"big", b"d-1"}


def test_an_outage_delays_and_loses_nothing(settings: Settings) -> None:
    produce(settings, [document(n) for n in range(20)])
    failures = dict.fromkeys((f"d-{n}" for n in range(20)), 8)

    async def process(document: Document) -> Extraction:
        if failures[document.id] > 0:
            failures[document.id] -= 1
            # A request that a stopping replica cancels looks like the first.
            raise {3: asyncio.CancelledError, 4: Overloaded}.get(failures[document.id], Outage)
        return await extract(document)

    consumer = make(settings, process, attempts=2)
    asyncio.run(consume(consumer, 20))
    assert (consumer.status().dead_lettered, consumer.status().retries) == (0, 160)
    assert len(check_results(settings, range(20))) == 20


def test_a_document_that_always_fails_is_set_aside(
    settings: Settings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    values = [document(n) for n in range(6)]
    produce(settings, [*values[:2], b'{"id": "bad", "text": "secret"}', b'{"id": "no", "text": "secret"}', *values[2:]])
    tried: list[str] = []

    async def process(document: Document) -> Extraction:
        tried.append(document.id)
        if document.id == "bad":
            raise ValueError(document.text)
        if document.id == "no":
            raise DocumentError("text", "is too long", "split it", reason="too_large")
        return await extract(document)

    asyncio.run(consume(make(settings, process, attempts=3), 8))
    assert (tried.count("bad"), tried.count("no")) == (3, 1)
    letters = read(settings, settings.topic_dead_letters, 2)
    told = {letter.value: dict(letter.headers)["biobracket.reason"] for letter in letters}
    assert told == {b'{"id": "bad", "text": "secret"}': b"exhausted", b'{"id": "no", "text": "secret"}': b"too_large"}
    assert len(check_results(settings, range(6))) == 6
    captured = capfd.readouterr()
    assert "secret" not in caplog.text + captured.out + captured.err


def test_the_window_bounds_documents_and_bytes(settings: Settings) -> None:
    values = [document(n) for n in range(30)]
    produce(settings, values)
    largest = max(map(len, values)) + 2  # of a record: its key too
    seen: list[tuple[int, int]] = []
    paused: list[bool] = []

    async def process(document: Document) -> Extraction:
        status = consumer.status()
        seen.append((status.in_flight, status.in_flight_bytes))
        await asyncio.sleep(0.05)
        paused.append(consumer.status().paused)
        return await extract(document)

    consumer = make(settings, process, max_documents=4)
    asyncio.run(consume(consumer, 30))
    assert max(count for count, _ in seen) == 4
    assert any(paused)
    check_results(settings, range(30))

    seen.clear()
    consumer = make(settings, process, group=uuid.uuid4().hex, max_bytes=3 * largest)
    asyncio.run(consume(consumer, 30))
    assert 1 < max(count for count, _ in seen) <= 4
    assert max(size for _, size in seen) <= 3 * largest

    seen.clear()
    consumer = make(settings, process, group=uuid.uuid4().hex, max_bytes=1)
    asyncio.run(consume(consumer, 30))
    assert {count for count, _ in seen} == {1}


def test_offsets_wait_for_the_first_that_is_not_done(settings: Settings) -> None:
    settings = settings.model_copy(update={"partitions": 1})
    produce(settings, [document(n) for n in range(8)])
    place = f"{settings.topic_documents}-0"

    async def scenario() -> None:
        gate = asyncio.Event()

        async def process(document: Document) -> Extraction:
            if document.id == "d-3":
                await gate.wait()
            return await extract(document)

        async with running(make(settings, process)) as consumer:
            await until(lambda: consumer.status().processed == 7 and consumer.status().committed == {place: 3})
            await asyncio.sleep(0.5)
            assert consumer.status().committed == {place: 3}
            assert consumer.status().lag == 5
            gate.set()
            await until(lambda: consumer.status().committed == {place: 8} and consumer.status().lag == 0)

    asyncio.run(scenario())
    check_results(settings, range(8))


def test_a_stop_abandons_what_does_not_finish(settings: Settings) -> None:
    produce(settings, [document(n) for n in range(8)])

    async def process(document: Document) -> Extraction:
        if document.id == "d-3":
            await asyncio.sleep(3600)
        if document.id == "d-4":
            raise Outage
        return await extract(document)

    async def scenario() -> None:
        async with running(make(settings, process, drain_s=0.5)) as consumer:
            await until(lambda: consumer.status().processed == 6)

    asyncio.run(scenario())
    asyncio.run(consume(make(settings, extract), 2))
    check_results(settings, range(8))


def test_a_record_is_published_once_and_a_document_sent_again_is_again(settings: Settings) -> None:
    produce(settings, [document(n) for n in range(5)])
    asyncio.run(consume(make(settings, extract), 5))
    # The same records, as after a crash before the commit.
    asyncio.run(consume(make(settings, extract, group=uuid.uuid4().hex), 5))
    assert len(check_results(settings, range(5))) == 5
    produce(settings, [document(2)])
    asyncio.run(consume(make(settings, extract), 1))
    assert len(check_results(settings, range(5))) == 6


def test_what_came_with_a_document_goes_with_its_result(settings: Settings) -> None:
    ensure_topics(settings)
    seen: Counter[str] = Counter()
    sent = {"id": "d-1", "text": "CD1", "metadata": {"ward": 7}, "of a later version": True}
    headers = (("traceparent", b"00-0af7-b7ad-01"), ("source", b"ehr"), ("key", b"theirs"), ("biobracket.x", b"y"))
    sink = Sink(settings)
    sink.send(settings.topic_documents, b"d-1", json.dumps(sent).encode(), headers).result(PATIENCE_S)
    large = (("traceparent", b"00-0af7-b7ad-01"), ("blob", b"x" * 40_000))
    sink.send(settings.topic_documents, b"d-2", document(2), large).result(PATIENCE_S)
    sink.close()

    async def process(document: Document) -> Extraction:
        return (await extract(document)).model_copy(update={"metadata": document.metadata})

    consumer = make(settings, process)
    consumer._observe = lambda metric, value, tags=None: seen.update({metric.name: int(value)})
    asyncio.run(consume(consumer, 2))
    found = {record.key: dict(record.headers) for record in read(settings, settings.topic_entities, 2)}
    first = found[b"d-1"]
    assert (first["traceparent"], first["source"]) == (b"00-0af7-b7ad-01", b"ehr")
    assert first["key"] != b"theirs"
    assert "biobracket.x" not in first
    assert found[b"d-2"].keys() == {"traceparent", "key"}
    store = ResultStore.from_settings(settings)
    stored = store.get("d-1")
    store.close()
    assert stored is not None
    assert stored.metadata == {"ward": 7}
    assert seen[UNKNOWN_FIELDS.name] == 1


@pytest.mark.parametrize("texts", [["long CD1 " * 50, "short CD2"], ["CD1", "CD2", "CD1"]])
def test_the_last_version_is_served(settings: Settings, texts: list[str]) -> None:
    """The first takes long, and comes back: what was sent last stays."""

    async def process(document: Document) -> Extraction:
        await asyncio.sleep(1.0 if document.text == texts[0] else 0.0)
        return await extract(document)

    ensure_topics(settings)
    sink = Sink(settings)
    for text in texts:
        sink.send(settings.topic_documents, b"d-1", json.dumps({"id": "d-1", "text": text}).encode()).result(PATIENCE_S)
    sink.close()
    asyncio.run(consume(make(settings, process), len(texts)))
    last = Document(id="d-1", text=texts[-1])
    published = [
        Extraction.model_validate_json(record.value or b"")
        for record in read(settings, settings.topic_entities, len(texts))
    ]
    assert [each.source.offset for each in published if each.source] == list(range(len(texts)))
    assert published[-1].text_sha256 == last.sha256
    store = ResultStore.from_settings(settings)
    assert store.get("d-1") == published[-1]
    store.close()


def test_a_store_that_is_down_delays_and_loses_nothing(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Valkey(tmp_path / "store", port)
    server.start()
    settings = settings.model_copy(update={"redis": SecretStr(server.url)})
    produce(settings, [document(n) for n in range(20)])

    async def process(document: Document) -> Extraction:
        if document.id == "d-10" and consumer.status().retries == 0:
            await asyncio.to_thread(server.stop)
        return await extract(document)

    consumer = make(settings, process)

    async def scenario() -> None:
        async with running(consumer):
            await until(lambda: consumer.status().retries > 5)
            assert consumer.status().dead_lettered == 0
            server.start()  # in this thread, since the server dies with the one that starts it
            await caught_up(consumer, 20)

    try:
        asyncio.run(scenario())
        assert consumer.status().dead_lettered == 0
        check_results(settings, range(20))
    finally:
        server.stop()


def test_a_fault_of_the_program_ends_the_consumer_and_tells_nothing(settings: Settings) -> None:
    produce(settings, [document(1)])

    async def process(document: Document) -> Extraction:
        raise DocumentError("text", "x", "y", reason="a reason that dead letters do not know")

    consumer = make(settings, process)
    with pytest.raises(RuntimeError, match="ValueError") as fault:
        asyncio.run(consumer.run())
    assert fault.value.__suppress_context__
    consumer._store.close()
    asyncio.run(consume(make(settings, extract), 1))
    check_results(settings, range(1, 2))


@pytest.mark.slow
def test_two_consumers_share_and_lose_nothing(settings: Settings) -> None:
    sent = 20
    produce(settings, [document(n) for n in range(sent)])

    def assigned(consumer: Consumer) -> bool:
        return hasattr(consumer, "_source") and bool(consumer._source.assignment())

    async def scenario() -> None:
        nonlocal sent
        async with running(make(settings, extract, max_documents=4)) as first:
            await until(lambda: first.status().processed >= 5)
            async with running(make(settings, extract, max_documents=4)) as second:
                await until(lambda: assigned(first) and assigned(second))
                # What has been assigned may go again before a record of it is done: the group may not be at rest.
                while second.status().processed == 0:
                    assert sent < 2000
                    await asyncio.to_thread(produce, settings, [document(n) for n in range(sent, sent + 20)])
                    sent += 20
                    await asyncio.sleep(1.0)
                await caught_up(first, 0)
                assert first.status().committed.keys() & second.status().committed.keys() == set()

    asyncio.run(scenario())
    check_results(settings, range(sent))


@pytest.mark.slow
def test_a_killed_consumer_loses_nothing(settings: Settings, tmp_path: Path) -> None:
    produce(settings, [document(n) for n in range(60)])
    environment = os.environ | {
        "BIOBRACKET_KAFKA": settings.kafka,
        "BIOBRACKET_REDIS": settings.redis.get_secret_value(),
        "BIOBRACKET_TOPIC_DOCUMENTS": settings.topic_documents,
        "BIOBRACKET_TOPIC_ENTITIES": settings.topic_entities,
        "BIOBRACKET_TOPIC_DEAD_LETTERS": settings.topic_dead_letters,
        "BIOBRACKET_TOPIC_FEEDBACK": settings.topic_feedback,
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
    }
    store = ResultStore.from_settings(settings)
    for least in (10, 25):
        child = subprocess.Popen([sys.executable, __file__], env=environment, cwd=tmp_path)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while store.counts()["documents"] < least:
                assert child.poll() is None
                assert time.monotonic() < deadline, (least, store.counts())
                time.sleep(0.05)
        finally:
            child.kill()
            child.wait()
    assert store.counts()["documents"] < 60
    store.close()
    consumer = make(settings, extract)
    asyncio.run(consume(consumer, 1))
    check_results(settings, range(60))


async def _until_killed() -> None:
    async def process(document: Document) -> Extraction:
        await asyncio.sleep(0.3)
        return await extract(document)

    await make(Settings(), process, max_documents=5).run()


@pytest.mark.parametrize("each_broker", ["kafka"], indirect=True)
def test_a_consumer_whose_place_is_taken_ends_and_the_other_goes_on(each_broker: Settings) -> None:
    settings = each_broker
    produce(settings, [document(n) for n in range(10)])

    async def run() -> None:
        first = make(settings, extract, instance="pod-0")
        running_first = asyncio.create_task(first.run())
        await caught_up(first, 10)
        async with running(make(settings, extract, instance="pod-0")):
            # The same again until the second has joined: who commits nothing need not hear of it.
            while not running_first.done():
                await asyncio.to_thread(produce, settings, [document(n) for n in range(20)])
                await asyncio.sleep(0.5)
            assert isinstance(running_first.exception(), Fenced)
            lag = await asyncio.to_thread(Lag, settings, settings.topic_documents, settings.topic_documents)
            await until(lambda: lag.read() == 0)
            lag.close()
        first._store.close()
        first._feedback.close()

    asyncio.run(run())
    check_results(settings, range(20))


if __name__ == "__main__":
    asyncio.run(_until_killed())
