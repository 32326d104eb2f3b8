"""The halt of a group, on a real store."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from services.embedded.servers import Valkey
from services.ingest import halting as module
from services.ingest.breaker import Breaker
from services.ingest.config import IngestConfig
from services.ingest.halting import Halting
from services.ingest.retries import Retries
from shared.backends.halt_store import HaltStore
from shared.runtime.metrics import HALTED, unobserved
from shared.settings import Settings


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.0)


@pytest.fixture
def store(valkey: Valkey) -> Iterator[HaltStore]:
    made = HaltStore(Settings(redis=SecretStr(valkey.url)), uuid.uuid4().hex)
    yield made
    made.close()


def make(store: HaltStore, seen: list[float] | None = None) -> Halting:
    retries = Retries(IngestConfig(), transient=(), crashes=(), observe=unobserved)

    def observe(metric: object, value: float, tags: object = None) -> None:
        if metric is HALTED and seen is not None:
            seen.append(value)

    return Halting(store, Breaker(3, 0.0), retries, observe)


def test_all_replicas_halt_and_go_on_again(store: HaltStore) -> None:
    async def run() -> None:
        seen: list[float] = []
        first, second = make(store, seen), make(store)
        for _ in range(3):
            assert first.why is None
            await first.count(dead=True)
        assert first.why == store.halted() == "3 records in a row went to the dead letters"
        await second.look()
        assert "dead-letters resume" in (second.problem or "")
        restarted = make(store)
        await restarted.look()
        assert restarted.why == first.why
        store.lift()
        for each in (first, second):
            await each.look()
            assert (each.why, each.problem) == (None, None)
        # It counts anew: two more are no run of three.
        for _ in range(2):
            await first.count(dead=True)
        assert first.why is None
        assert seen == [1.0, 0.0]

    asyncio.run(run())


class Slow(HaltStore):
    """Its answer to a question is on its way for as long as it is held."""

    def __init__(self, settings: Settings, group: str) -> None:
        super().__init__(settings, group)
        self.asked, self.go = threading.Event(), threading.Event()

    def halted(self) -> str | None:
        why = super().halted()
        self.asked.set()
        self.go.wait()
        return why


def test_an_old_answer_does_not_lift_a_halt(valkey: Valkey) -> None:
    async def run() -> None:
        slow = Slow(Settings(redis=SecretStr(valkey.url)), uuid.uuid4().hex)
        halting = make(slow)
        looking = asyncio.create_task(halting.look())
        await asyncio.to_thread(slow.asked.wait)
        for _ in range(2):
            await halting.count(dead=True)
        telling = asyncio.create_task(halting.count(dead=True))
        await asyncio.sleep(0)
        slow.go.set()
        await asyncio.gather(looking, telling)
        assert halting.why is not None
        slow.close()

    asyncio.run(run())


def test_without_a_store_it_stays_as_it_is() -> None:
    async def run() -> None:
        nowhere = HaltStore(Settings(redis=SecretStr("redis://127.0.0.1:9/0")), "group")
        halting = make(nowhere)
        await halting.look()
        assert halting.why is None
        nowhere.close()

    asyncio.run(run())
