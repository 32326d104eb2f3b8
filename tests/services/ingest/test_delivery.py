"""Which version of a document is served, and comes last on the topic, in any order of what can happen.

Workers stand for replicas that each have a record in hand, one of them maybe no longer theirs. They take turns at every
step: a write to the store, a record that reaches the topic, the note that it did. A crash ends a worker between two
steps; then its record, which was not committed, is given to another.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from services.audit_trail import AuditTrail, Verified, verify
from services.embedded.servers import Valkey
from services.ingest.delivery import Delivery, record_bytes
from shared.backends.feedback_store import FeedbackStore
from shared.backends.records import Headers, Record, erasure_of, place_headers
from shared.backends.result_store import ResultStore
from shared.backends.stored_results import document_key
from shared.errors import DocumentError, StoreError
from shared.messages import Document, Erasure, Extraction, SourcePosition
from shared.runtime.metrics import SUPERSEDED, unobserved
from shared.settings import Settings

T = TypeVar("T")
TEXTS = "ABA"  # the last version has the text of the first one


class Topic:
    def __init__(self) -> None:
        self.records: list[tuple[str, bytes | None, bytes | None, Headers]] = []

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Future[None]:
        self.records.append((topic, key, value, headers))
        sent: Future[None] = Future()
        sent.set_result(None)
        return sent

    def revisions(self) -> list[tuple[int, str]]:
        """Offset and model of what was published."""
        found = [Extraction.model_validate_json(value or b"") for _, _, value, _ in self.records]
        return [(each.source.offset, each.model_revision) for each in found if each.source is not None]


def version(offset: int, model: str = "r") -> Extraction:
    return Extraction(
        document_id="d",
        text_sha256=TEXTS[offset % len(TEXTS)],
        lang="en",
        types=(),
        entities=(),
        source=SourcePosition(topic="t", partition=0, offset=offset, timestamp_ms=0),
        model_revision=model,
    )


def record(extraction: Extraction, replay: bool = False) -> Record:
    place = extraction.source
    assert place is not None
    key = extraction.document_id.encode()
    headers = place_headers(place) if replay else ()
    return Record(place.topic, place.partition, place.offset, key, b"{}", place.timestamp_ms, headers)


@pytest.fixture
def store(valkey: Valkey) -> Iterator[ResultStore]:
    made = ResultStore.from_settings(Settings(redis=SecretStr(valkey.url)))
    made._client.flushall()
    yield made
    made.close()


@pytest.fixture
def feedback(valkey: Valkey) -> Iterator[FeedbackStore]:
    made = FeedbackStore.from_settings(Settings(redis=SecretStr(valkey.url)))
    yield made
    made.close()


async def once(stage: str, work: Callable[[], Awaitable[T]]) -> T:
    return await work()


class Worker:
    """A delivery that goes on by a step whenever it is let."""

    def __init__(self, store: ResultStore, topic: Topic, extraction: Extraction) -> None:
        self._may = asyncio.Event()
        self._stopped = asyncio.Event()
        delivery = Delivery(
            store=store,
            feedback=None,  # type: ignore[arg-type]
            sink=topic,  # type: ignore[arg-type]
            settings=Settings(),
            persist=self._step,
            observe=unobserved,
        )
        self.extraction = extraction
        self.task = asyncio.create_task(delivery.deliver(record(extraction), extraction))

    async def _step(self, stage: str, work: Callable[[], Awaitable[T]]) -> T:
        self._stopped.set()
        await self._may.wait()
        self._may.clear()
        return await work()

    async def go_on(self) -> None:
        """Lets it take one step."""
        await asyncio.wait([self.task, asyncio.create_task(self._stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
        self._stopped.clear()
        self._may.set()
        await asyncio.wait([self.task, asyncio.create_task(self._stopped.wait())], return_when=asyncio.FIRST_COMPLETED)


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_last_version_is_served_and_comes_last(store: ResultStore, data: st.DataObject) -> None:
    store._client.flushall()
    topic = Topic()

    async def run() -> None:
        # Twice in hand: of a replica that lost the partition, and of the one that has it now; or replayed.
        offsets = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(sorted))
        waiting = [version(offset) for offset in offsets]
        workers: list[Worker] = []
        crashes = 3
        while waiting or workers:
            choice = data.draw(st.integers(0, len(workers) + bool(waiting) - 1))
            if choice == len(workers):
                workers.append(Worker(store, topic, waiting.pop(0)))
            elif crashes and data.draw(st.integers(0, 5)) == 5:
                crashes -= 1
                crashed = workers.pop(choice)
                crashed.task.cancel()
                await asyncio.wait([crashed.task])
                waiting.append(crashed.extraction)
            else:
                await workers[choice].go_on()
            for worker in [each for each in workers if each.task.done()]:
                worker.task.result()
                workers.remove(worker)
        newest = version(offsets[-1])
        assert store.get("d") == newest
        assert topic.revisions()[-1] == (offsets[-1], "r")
        fields = store._client.hgetall(document_key("d"))
        assert sum(int(count) for name, count in fields.items() if name.startswith(b"open:")) <= 3 - crashes

    asyncio.run(run())


def test_what_a_dead_publisher_sent_last_does_not_stay_last(store: ResultStore) -> None:
    topic = Topic()

    async def run() -> None:
        first, second = (Worker(store, topic, version(0)) for _ in range(2))
        for worker in (first, second):
            await worker.go_on()  # both have it in hand
        while not first.task.done():
            await first.go_on()
        newer = Worker(store, topic, version(1))
        while not newer.task.done():
            await newer.go_on()
        await second.go_on()
        assert topic.revisions() == [(0, "r"), (1, "r"), (0, "r")]
        second.task.cancel()
        await asyncio.wait([second.task])
        again = Worker(store, topic, version(0))
        while not again.task.done():
            await again.go_on()

    asyncio.run(run())
    assert topic.revisions()[-1] == (1, "r")


def delivery_to(store: ResultStore, topic: Topic, **options: Any) -> Delivery:
    given = {"settings": Settings(), "persist": once, "observe": unobserved, "feedback": None} | options
    return Delivery(store=store, sink=topic, **given)  # type: ignore[arg-type]


def deliver(store: ResultStore, topic: Topic, *extractions: Extraction, replay: bool = False, **options: Any) -> None:
    delivery = delivery_to(store, topic, **options)
    for extraction in extractions:
        asyncio.run(delivery.deliver(record(extraction, replay), extraction))


def test_a_model_rolled_back_and_its_replay(store: ResultStore) -> None:
    topic = Topic()
    deliver(store, topic, version(0, "old"), version(1, "old"), version(0, "new"), version(1, "new"))
    deliver(store, topic, version(0, "old"), version(1, "old"), replay=True)
    assert topic.revisions() == [(0, "old"), (1, "old"), (1, "new"), (1, "old")]
    assert [("biobracket.replayed", b"true") in headers for *_, headers in topic.records] == [False] * 3 + [True]
    assert store.get("d") == version(1, "old")


def test_what_was_overtaken_is_counted(store: ResultStore) -> None:
    seen: list[str] = []
    deliver(
        store,
        Topic(),
        version(1),
        version(0),
        observe=lambda metric, value, tags=None: seen.append(metric.name) if metric is SUPERSEDED else None,
    )
    assert seen == [SUPERSEDED.name]


def test_a_result_too_large_for_the_topic_is_in_the_store(store: ResultStore) -> None:
    topic = Topic()
    small = Settings(max_message_bytes=1024)
    large = version(0).model_copy(update={"warnings": ("x" * 2000,)})
    with pytest.raises(DocumentError, match="BIOBRACKET_MAX_MESSAGE_BYTES"):
        deliver(store, topic, large, settings=small)
    assert store.get("d") == large
    # The next version finds nothing wrong with itself.
    deliver(store, topic, version(1), settings=small)
    assert topic.revisions() == [(1, "r")]


def test_bytes_of_a_record() -> None:
    assert record_bytes(Record("t", 0, 0, b"ab", None, 0, (("é", b"c"),))) == 5


def test_an_erasure_is_published_as_a_null_value_that_names_its_place(
    store: ResultStore, feedback: FeedbackStore
) -> None:
    topic = Topic()
    deliver(store, topic, version(0))
    place = SourcePosition(topic="t", partition=0, offset=1, timestamp_ms=0)
    delivery = delivery_to(store, topic, feedback=feedback)
    for _ in range(2):  # redelivered: once is enough
        asyncio.run(delivery.erase(Record("t", 0, 1, b"d", None, 0, (("traceparent", b"00"),))))
    assert len(topic.records) == 2
    name, key, value, headers = topic.records[-1]
    assert (key, value, headers[0]) == (b"d", None, ("traceparent", b"00"))
    assert erasure_of(Record(name, 0, 1, key, value, 0, headers)) == Erasure(document_id="d", source=place)
    deliver(store, topic, version(0))
    assert len(topic.records) == 2
    # What fails after the erasure becomes no dead letter; by its key where it cannot be read.
    document, error = Document(id="d", text="x"), DocumentError("text", "is bad", "send another")
    for offset, erased in ((0, True), (1, True), (2, False)):
        for key, read in ((b"another", document), (b"d", None)):
            sent = Record("t", 0, offset, key, b"x", 0)
            assert asyncio.run(delivery.bury(sent, read, error)) != erased
    assert asyncio.run(delivery.bury(Record("t", 0, 0, None, b"x", 0), None, error))
    # The key of feedback names no document.
    assert asyncio.run(delivery.bury(Record(Settings().topic_feedback, 0, 0, b"d", b"x", 0), None, error))
    deliver(store, topic, version(2))
    assert store.get("d") == version(2)


def test_each_record_has_an_entry_in_the_audit_trail(store: ResultStore, feedback: FeedbackStore) -> None:
    lines: list[bytes] = []
    delivery = delivery_to(store, Topic(), feedback=feedback, trail=AuditTrail(lines.append))
    topic = Settings().topic_feedback
    opinion = {"text": "fever", "start": 0, "end": 5, "type": "disease", "accepted": False}
    for offset in (1, 0):
        asyncio.run(delivery.deliver(record(version(offset)), version(offset)))
    asyncio.run(delivery.learn(Record(topic, 0, 0, None, json.dumps(opinion).encode(), 1000)))
    asyncio.run(delivery.learn(Record(topic, 0, 1, b"opinion", None, 2000)))
    asyncio.run(delivery.bury(Record("t", 0, 2, b"d", b"{", 0), None, DocumentError("document", "", "", "not_json")))
    asyncio.run(delivery.erase(Record("t", 0, 3, b"d", None, 0)))
    asyncio.run(delivery.bury(Record("t", 0, 2, b"d", b"{", 0), None, DocumentError("document", "", "", "not_json")))
    asyncio.run(delivery.erase(Record("t", 0, 3, b"d", None, 0)))
    entries = [json.loads(line) for line in lines]
    assert [(entry["who"], entry["action"], entry["outcome"]) for entry in entries] == [
        ("topic t", "extract", "stored"),
        ("topic t", "extract", "superseded"),
        (f"topic {topic}", "feedback", "rejected"),
        (f"topic {topic}", "feedback", "undone"),
        ("topic t", "extract", "not_json"),
        ("topic t", "forget", "erased"),
        ("topic t", "extract", "erased"),
        ("topic t", "forget", "erased"),
    ]
    of_document = hashlib.sha256(b"d").hexdigest()
    assert [n for n, entry in enumerate(entries) if entry["what"] == of_document] == [0, 1, 4, 5, 6, 7]
    assert not list(verify(lines, Verified()))


def test_without_an_entry_a_record_is_not_done(store: ResultStore) -> None:
    def full(line: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    delivery = delivery_to(store, Topic(), trail=AuditTrail(full))
    with pytest.raises(StoreError, match="BIOBRACKET_AUDIT") as caught:
        asyncio.run(delivery.deliver(record(version(0)), version(0)))
    assert caught.value.retryable
