"""What is left of documents in any order of versions, erasures, crashes, redeliveries and the loss of the store.

Workers stand for replicas that each have a record in hand. They take turns before every single command to the store,
so that each may be overtaken anywhere; the machine lets one of them go on at a time, so that a failing order is the
same each time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from services.embedded.servers import Valkey
from services.ingest.delivery import Delivery
from shared.backends import mention_index
from shared.backends.feedback_store import FeedbackStore
from shared.backends.mention_index import keys_of
from shared.backends.records import Headers, Record, erasure_of
from shared.backends.result_store import ResultStore
from shared.messages import Entity, Erasure, Extraction, SourcePosition, entity_id
from shared.runtime.metrics import unobserved
from shared.settings import Settings
from tests.support.redis_server import RedisServer, Unavailable

T = TypeVar("T")
IDS = ("one", "two")
MENTIONS = ("zq17 fever", "zq17 cough")
TTL_S = 1000
SEARCH = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None, report_multiple_bugs=False)


class Crash(Exception):
    """The end of a process."""


def place(offset: int) -> SourcePosition:
    return SourcePosition(topic="t", partition=0, offset=offset, timestamp_ms=0)


def version(document_id: str, mentions: tuple[str, ...], offset: int) -> Extraction:
    entities = [
        Entity(
            id=entity_id("disease", 20 * n, 20 * n + len(text)),
            start=20 * n,
            end=20 * n + len(text),
            text=text,
            type="disease",
            confidence=0.9,
            generator_confidence=0.8,
        )
        for n, text in enumerate(mentions)
    ]
    return Extraction(
        document_id=document_id,
        text_sha256=" ".join(mentions),
        lang="en",
        types=("disease",),
        entities=tuple(entities),
        source=place(offset),
        model_revision="r",
    )


def segment_of(extraction: Extraction) -> str:
    return f"{extraction.document_id}: {extraction.text_sha256}"


async def once(stage: str, work: Callable[[], Awaitable[T]]) -> T:
    return await work()


class Topic:
    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        self.records.append(Record("entities", 0, len(self.records), key, value, 0, headers))

    def told(self, document_id: str) -> list[Extraction | Erasure]:
        found: list[Extraction | Erasure] = []
        for record in self.records:
            if record.key == document_id.encode():
                erasure = erasure_of(record)
                found.append(erasure or Extraction.model_validate_json(record.value or b""))
        return found


class Worker:
    """A replica with one record in hand, which stops before each command to the store and each record it sends."""

    def __init__(self, settings: Settings, topic: Topic, what: Extraction | Erasure) -> None:
        self.what = what
        self._topic = topic
        self._may = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._crashed = False
        self.done = False
        self.error: BaseException | None = None
        self._store = ResultStore.from_settings(settings)
        self._feedback = FeedbackStore.from_settings(settings)
        for name in ("_reserve", "_write", "_erase", "_note", "_begin_sweep", "_end_sweep"):
            setattr(self._store, name, self._gated(getattr(self._store, name)))
        for part, names in ((self._store._index, ("add", "remove")), (self._store._traces, ("note", "remove"))):
            for name in names:
                setattr(part, name, self._gated(getattr(part, name)))
        self._delivery = Delivery(
            store=self._store,
            feedback=self._feedback,
            sink=self,  # type: ignore[arg-type]
            settings=settings,
            persist=once,
            observe=unobserved,
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._stopped.acquire()

    def _gated(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def gated(*args: Any, **options: Any) -> Any:
            self._stopped.release()
            self._may.acquire()
            if self._crashed:
                raise Crash
            return call(*args, **options)

        return gated

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Future[None]:
        self._gated(self._topic.append)(key, value, headers)
        sent: Future[None] = Future()
        sent.set_result(None)
        return sent

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except BaseException as error:
            self.error = error
        finally:
            self._store.close()
            self._feedback.close()
            self.done = True
            self._stopped.release()

    async def _work(self) -> None:
        source = self.what.source
        assert source is not None
        record = Record(source.topic, source.partition, source.offset, self.what.document_id.encode(), None, 0)
        if isinstance(self.what, Erasure):
            await self._delivery.erase(record)
            return
        # As the pipeline caches what it decided.
        segment = segment_of(self.what)
        self._store.trace_segments(self.what.document_id, [segment])
        self._gated(self._store.put_segments)({segment: b"zq17"})
        self._store.trace_segments(self.what.document_id, [segment])
        await self._delivery.deliver(record, self.what)

    def go_on(self, steps: int = 1) -> None:
        while steps and not self.done:
            steps -= 1
            self._may.release()
            self._stopped.acquire()
        if self.done and self.error is not None and not isinstance(self.error, Crash):
            raise self.error

    def crash(self) -> None:
        self._crashed = True
        while not self.done:
            self.go_on()
        self._thread.join()


class States(RuleBasedStateMachine):
    settings: Settings

    def __init__(self) -> None:
        super().__init__()
        self.client = redis.Redis.from_url(self.settings.redis.get_secret_value())
        self.client.flushall()
        self.topic = Topic()
        self.log: list[Extraction | Erasure] = []
        self.waiting: set[int] = set()
        self.crashes = 0
        self.workers: list[Worker] = []

    @rule(document_id=st.sampled_from(IDS), mentions=st.lists(st.sampled_from(MENTIONS), max_size=2, unique=True))
    def amend(self, document_id: str, mentions: list[str]) -> None:
        self._append(version(document_id, tuple(mentions), len(self.log)))

    @rule(document_id=st.sampled_from(IDS))
    def erase(self, document_id: str) -> None:
        self._append(Erasure(document_id=document_id, source=place(len(self.log))))

    def _append(self, what: Extraction | Erasure) -> None:
        self.waiting.add(len(self.log))
        self.log.append(what)

    @precondition(lambda self: self.waiting and len(self.workers) < 4)
    @rule(data=st.data())
    def take_up(self, data: st.DataObject) -> None:
        self._take(data.draw(st.sampled_from(sorted(self.waiting))))

    @precondition(lambda self: self.log and len(self.workers) < 4)
    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        """Also a replay, or a worker whose partition went to another."""
        self._take(data.draw(st.sampled_from(range(len(self.log)))))

    def _take(self, offset: int) -> None:
        self.waiting.discard(offset)
        self.workers.append(Worker(self.settings, self.topic, self.log[offset]))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), steps=st.sampled_from([1, 1, 2, 5, 100]))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        worker.go_on(steps)
        if worker.done:
            self.workers.remove(worker)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.crashes += 1
        self.workers.remove(worker)
        worker.crash()
        assert worker.what.source is not None
        self.waiting.add(worker.what.source.offset)

    @precondition(lambda self: not self.workers and not self.waiting)
    @rule()
    def lose_and_rebuild(self) -> None:
        self.client.flushall()
        self._rebuild()
        self._check()

    def _rebuild(self) -> None:
        """Last ones first: they are written by several threads."""
        store = ResultStore.from_settings(self.settings)
        for record in reversed(self.topic.records):
            erasure = erasure_of(record)
            if erasure is not None:
                store.erase(erasure, published=True)
            else:
                store.put(Extraction.model_validate_json(record.value or b""), published=True)
        store.close()

    def teardown(self) -> None:
        try:
            while self.workers or self.waiting:
                for worker in self.workers:
                    worker.go_on(10**6)
                self.workers.clear()
                for offset in sorted(self.waiting, reverse=True):
                    self._take(offset)
            self._check()
            # However late they come back: by a replay of all that there ever was.
            for offset in range(len(self.log)):
                self._take(offset)
                self.workers.pop().go_on(10**6)
            self._check()
        finally:
            for worker in self.workers:
                worker.crash()
            self.client.close()

    def _check(self) -> None:
        store = ResultStore.from_settings(self.settings)
        newest = {what.document_id: what for what in self.log}
        alive = {id_: what for id_, what in newest.items() if isinstance(what, Extraction)}
        for document_id, what in newest.items():
            assert store.get(document_id) == alive.get(document_id)
            assert self.topic.told(document_id)[-1].source == what.source
            assert isinstance(self.topic.told(document_id)[-1], type(what))
        indexed = {
            (key.decode(), id_.decode()) for key in self._keys("bb:m:*") for id_ in self.client.zrange(key, 0, -1)
        }
        assert indexed >= {(key, id_) for id_, what in alive.items() for key in keys_of(what)}
        # A crash may leave more of a document that is there, until it is read; of one that is erased nothing is left.
        assert {id_ for _, id_ in indexed} <= alive.keys()
        assert store.counts() == {
            "documents": len(alive),
            "entities": sum(len(each.entities) for each in alive.values()),
        }
        for id_ in newest.keys() - alive.keys():
            self._check_forgotten(store, id_)
        for id_ in alive:
            assert {self.client.ttl(key) for key in self._keys_of(store, id_, "d")} == {-1}
        store.close()

    def _check_forgotten(self, store: ResultStore, document_id: str) -> None:
        """What stays is the mark, which has no text and expires."""
        segments = {segment_of(each) for each in self.log if isinstance(each, Extraction)}
        of_it = [each for each in segments if each.startswith(f"{document_id}:")]
        assert not any(store.get_segments(of_it))
        assert not self._keys_of(store, document_id, "[is]")
        for key in self._keys_of(store, document_id, "[de]"):
            assert 0 < self.client.ttl(key) <= TTL_S
            fields = self.client.hgetall(key)
            # A publisher that died is never known to have ended.
            assert sum(int(n) for name, n in fields.items() if name.startswith(b"open:")) <= self.crashes
            assert {name for name in fields if not name.startswith(b"open:")} <= {
                *(b"version", b"erased", b"published", b"swept"),
                *(b"topic", b"topic_id", b"partition", b"offset", b"time"),
            }
            assert b"zq17" not in b" ".join(fields.values())

    def _keys(self, pattern: str) -> list[bytes]:
        return list(self.client.scan_iter(match=pattern))

    def _keys_of(self, store: ResultStore, document_id: str, kind: str) -> list[bytes]:
        from shared.backends.stored_results import document_key

        return self._keys(document_key(document_id).replace("}:d:", f"}}:{kind}:"))


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Valkey]:
    try:
        server = Valkey(tmp_path) if request.param == "valkey" else RedisServer(tmp_path)
    except Unavailable as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.mark.slow
def test_erased_stays_erased_and_amended_comes_back(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mention_index, "SETTLED_MS", 10**9)  # nothing here may rest on entries dropped when read
    States.settings = Settings(redis=server.url, erasure_ttl=TTL_S)  # type: ignore[arg-type]
    run_state_machine_as_test(States, settings=SEARCH)
