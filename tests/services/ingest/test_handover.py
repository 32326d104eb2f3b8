"""Deployments that take a group over from one another, with leases in a real store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from services.embedded.servers import Valkey
from services.ingest.consumer import Consumer
from services.ingest.handover import Handover
from shared.backends.group_lease import GroupLease
from shared.backends.streams.sink import Sink
from shared.backends.streams.topics import ensure_topics
from shared.errors import StoreError
from shared.messages import Document, Extraction
from shared.runtime.metrics import LEASE_EPOCH, Metric
from shared.settings import Settings
from tests.services.ingest.test_consumer import PATIENCE_S, caught_up, check_results, document, extract, make, until

LASTS_S = 15.0


class Tenant:
    """A consumer without work, which takes a while to stop."""

    def __init__(self, drain_s: float = 0.0) -> None:
        self._stopped = asyncio.Event()
        self._drain_s = drain_s
        self.failure: Exception | None = None

    async def run(self) -> None:
        await self._stopped.wait()
        await asyncio.sleep(self._drain_s)
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        self._stopped.set()


class Replica:
    """One replica of a deployment, with what it says of itself."""

    def __init__(self, settings: Settings, deployment: str, name: str = "0", lasts_s: float = LASTS_S) -> None:
        self.ready = True
        self.epochs: list[float] = []
        self.lease = GroupLease(settings, settings.topic_documents, deployment, f"{deployment}-{name}", lasts_s)
        self.handover = Handover(self.lease, self._ready, self._observe, ask_s=0.05, margin_s=min(10.0, lasts_s / 3))

    async def _ready(self) -> bool:
        return self.ready

    def _observe(self, metric: Metric, value: float, tags: object = None) -> None:
        assert metric is LEASE_EPOCH
        self.epochs.append(value)

    @property
    def consumes(self) -> bool:
        return self.handover.tenant is not None

    @asynccontextmanager
    async def running(self, make: Callable[[], Tenant | Consumer]) -> AsyncIterator[None]:
        task = asyncio.create_task(self.handover.run(make))
        try:
            yield
        finally:
            self.handover.stop()
            await task
            self.lease.close()


@pytest.fixture
def store(valkey: Valkey, fresh: Callable[[str], Settings]) -> Settings:
    return fresh("127.0.0.1:1").model_copy(update={"redis": SecretStr(valkey.url)})


def test_a_new_deployment_waits_for_its_pipeline_and_for_the_old_one(store: Settings) -> None:
    async def run() -> None:
        old, new = Replica(store, "old"), Replica(store, "new")
        new.ready = False
        async with old.running(lambda: Tenant(drain_s=0.5)):
            await until(lambda: old.consumes)
            async with new.running(Tenant):
                await asyncio.sleep(0.3)
                assert (old.consumes, new.consumes) == (True, False)
                new.ready = True
                while not new.consumes:
                    await asyncio.sleep(0)
                assert not old.consumes
                await asyncio.sleep(0.3)
                assert (old.consumes, new.consumes) == (False, True)
        assert max(old.epochs) == 1
        assert max(new.epochs) == 2
        assert old.epochs[-1] == new.epochs[-1] == 0

    asyncio.run(run())


def test_replicas_of_one_deployment_consume_together(store: Settings) -> None:
    async def run() -> None:
        one, another = Replica(store, "a", "0"), Replica(store, "a", "1")
        async with one.running(Tenant), another.running(Tenant):
            await until(lambda: one.consumes and another.consumes)
            await asyncio.sleep(0.3)
            assert (one.consumes, another.consumes) == (True, True)

    asyncio.run(run())


def test_the_old_one_goes_on_where_the_new_one_vanished(store: Settings) -> None:
    async def run() -> None:
        old, new = Replica(store, "old", lasts_s=1.0), Replica(store, "new", lasts_s=1.0)
        async with old.running(Tenant):
            await until(lambda: old.consumes)
            async with new.running(Tenant):
                await until(lambda: new.consumes)
            assert not old.consumes
            await until(lambda: old.consumes)
        assert max(old.epochs) == 3

    asyncio.run(run())


def test_what_a_consumer_raises_is_told_and_ends_the_term(store: Settings) -> None:
    async def run() -> None:
        broken, next_ = Replica(store, "a"), Replica(store, "b")
        tenant = Tenant()
        tenant.failure = RuntimeError("ended")
        task = asyncio.create_task(broken.handover.run(lambda: tenant))
        await until(lambda: broken.consumes)
        tenant.stop()
        with pytest.raises(RuntimeError, match="ended"):
            await task
        async with next_.running(Tenant):
            await until(lambda: next_.consumes)

    asyncio.run(run())


def test_nothing_is_delivered_outside_a_term(store: Settings) -> None:
    given = Document(id="d", text="CD4")

    async def run() -> None:
        replica = Replica(store, "a", lasts_s=3.0)
        process = replica.handover.guarded(extract)
        with pytest.raises(StoreError, match="lease"):
            await process(given)
        async with replica.running(Tenant):
            await until(lambda: replica.consumes)
            assert (await process(given)).document_id == "d"

            def away(epoch: int) -> None:
                raise StoreError("redis: away", True)

            replica.lease.renew = away  # type: ignore[assignment, method-assign]
            late = None
            while late is None:  # until its term is nearly over
                try:
                    await process(given)
                    await asyncio.sleep(0.05)
                except StoreError as error:
                    late = error
            assert late.retryable
            del replica.lease.renew
            await until(lambda: replica.handover._until is not None)
            while True:  # the server is back
                try:
                    assert (await process(given)).document_id == "d"
                    break
                except StoreError:
                    await asyncio.sleep(0.05)

    asyncio.run(run())


def test_one_deployment_alone_needs_no_lease() -> None:
    async def never() -> bool:
        raise AssertionError

    async def run() -> None:
        handover = Handover(None, never, lambda *_: None)
        assert handover.guarded(extract) is extract
        task = asyncio.create_task(handover.run(Tenant))
        await until(lambda: handover.tenant is not None)
        handover.stop()
        await task

    asyncio.run(run())


@pytest.mark.slow
def test_each_document_has_one_result_of_one_revision_over_an_upgrade_and_back(each_broker: Settings) -> None:
    settings = each_broker
    ensure_topics(settings)
    at_work: dict[str, int] = {}
    made: dict[str, str] = {}

    def revision(name: str) -> Callable[[Document], object]:
        async def process(given: Document) -> Extraction:
            at_work[name] = at_work.get(name, 0) + 1
            assert sum(map(bool, at_work.values())) == 1, "two deployments work at once"
            await asyncio.sleep(0.05)
            at_work[name] -= 1
            return (await extract(given)).model_copy(update={"model_revision": name})

        return process

    async def run() -> int:
        sink = Sink(settings)
        sent = 0
        enough = asyncio.Event()

        async def load() -> None:
            nonlocal sent
            while not enough.is_set():
                sink.send(settings.topic_documents, b"%d" % sent, document(sent))
                sent += 1
                await asyncio.sleep(0.03)

        def of(name: str) -> tuple[Replica, list[Consumer], Callable[[], Consumer]]:
            replica, consumers = Replica(settings, name), []

            def start() -> Consumer:
                process = replica.handover.guarded(revision(name))  # type: ignore[arg-type]
                consumers.append(make(settings, process, drain_s=5.0))
                return consumers[-1]

            return replica, consumers, start

        loading = asyncio.create_task(load())
        (one, _, start_one), (two, _, start_two), (back, last, start_back) = of("one"), of("two"), of("back")
        async with one.running(start_one):
            await until(lambda: works(one))
            async with two.running(start_two):
                await until(lambda: works(two))
                assert not one.consumes
                async with back.running(start_back):
                    await until(lambda: works(back))
                    assert not one.consumes
                    assert not two.consumes
                    enough.set()
                    await loading
                    await caught_up(last[0], 1)
        await asyncio.to_thread(sink.close)
        return sent

    def works(replica: Replica) -> bool:
        consumer = replica.handover.tenant
        return isinstance(consumer, Consumer) and consumer.status().processed >= 5

    count = asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    records = check_results(settings, range(count))
    assert len(records) == count  # none twice
    for record in records:
        result = json.loads(record.value or b"")
        made[result["document_id"]] = result["model_revision"]
    assert set(made.values()) == {"one", "two", "back"}
