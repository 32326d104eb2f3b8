"""What the store held is there again after it lost everything."""

from __future__ import annotations

import asyncio

import pytest

from services.rebuild import RebuildCounts, rebuild
from shared.backends.result_store import ResultStore
from shared.backends.streams.sink import Sink
from shared.settings import Settings
from tests.services.ingest.test_consumer import consume, document, extract, make, produce


@pytest.fixture
def settings(each_broker: Settings) -> Settings:
    return each_broker


def test_results_mentions_and_counts_come_back(settings: Settings) -> None:
    produce(settings, [*(document(n) for n in range(30)), document(4), document(4)])
    asyncio.run(consume(make(settings, extract), 32))
    sink = Sink(settings)
    sink.send(settings.topic_entities, b"x", b"of another program").result(60)
    sink.close()
    store = ResultStore.from_settings(settings)

    def everything() -> object:
        mentions = {(m.document_id, m.entity.id) for m in store.mentions("CD28", limit=1000)}
        return [store.get(f"d-{n}") for n in range(30)], mentions, store.counts()

    before = everything()
    counts = rebuild(settings)
    assert (counts.written, counts.unchanged, counts.unreadable) == (0, 30, 1)
    store._client.flushall()
    assert rebuild(settings).written >= 30
    assert everything() == before
    # Documents that come now find the store as if nothing had been.
    produce(settings, [document(4)])
    asyncio.run(consume(make(settings, extract), 1))
    assert store.counts() == {"documents": 30, "entities": before[2]["entities"]}  # type: ignore[index]
    assert str(RebuildCounts(1200, 1, 2, 3)) == "1,200 results written, 3 there already, 3 records cannot be read"
    assert str(RebuildCounts(erased=1)) == "0 results written, 0 there already, 1 erased"
    store.close()
