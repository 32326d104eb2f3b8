"""Erasures among versions, on real brokers and a real store, by consumers that stop half-way and are slow with some."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import closing
from typing import Any

import pytest

from services.audit import Audit
from services.dead_letters import DeadLetters, Filter
from services.rebuild import rebuild
from shared.backends.records import erasure_of
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Scan
from shared.backends.streams.sink import Sink
from shared.backends.streams.topics import ensure_topics
from shared.messages import Document, Extraction
from shared.settings import Settings
from tests.services.ingest.test_consumer import caught_up, extract, make, running, until

DOCUMENTS = 40
FAILS = "cannot be processed"


def histories(seed: int) -> dict[str, list[str | None]]:
    """Of each document its versions, None for an erasure; every third version cannot be processed."""
    rng = random.Random(seed)
    texts = ["CD1 binds.", "CD2 binds CD3.", FAILS, None, None]
    found: dict[str, list[str | None]] = {}
    for n in range(DOCUMENTS):
        found[f"病历 {n}"] = [
            text if text is None else f"{text} v{step}"
            for step, text in enumerate(rng.choice(texts) for _ in range(rng.randint(2, 5)))
        ]
    return found


def send(settings: Settings, told: dict[str, list[str | None]], seed: int) -> int:
    """The records of all documents, mixed; those of one document stay in their order."""
    rng = random.Random(seed)
    waiting = {id_: list(history) for id_, history in told.items()}
    count = 0
    with closing(Sink(settings)) as sink:
        while waiting:
            id_ = rng.choice(sorted(waiting))
            text = waiting[id_].pop(0)
            value = None if text is None else json.dumps({"id": id_, "text": text}).encode()
            sink.send(settings.topic_documents, id_.encode(), value).result(60)
            count += 1
            if not waiting[id_]:
                del waiting[id_]
    return count


async def slow(document: Document) -> Extraction:
    """The earlier a version the longer it takes, so that erasures and later versions overtake it."""
    step = int(document.text.rpartition(" v")[2])
    await asyncio.sleep(0.4 / (1 + step) ** 2)
    if document.text.startswith(FAILS):
        raise ValueError
    return await extract(document)


def check(settings: Settings, told: dict[str, list[str | None]]) -> None:
    with (
        closing(ResultStore.from_settings(settings)) as store,
        closing(Scan(settings, settings.topic_entities)) as scan,
    ):
        last = {(record.key or b"").decode(): record for records in scan.read() for record in records}
        alive = set()
        for id_, history in told.items():
            # A version that cannot be processed has no result: the one before stays, unless it was erased.
            worked = [text for text in history if text is None or not text.startswith(FAILS)]
            newest = worked[-1] if worked else None
            stored = store.get(id_)
            if newest is None:
                assert stored is None
                assert not worked or erasure_of(last[id_]) is not None
                assert not store._client.exists(_key(id_, "i"), _key(id_, "s"))
            else:
                alive.add(id_)
                assert stored is not None
                assert stored.text_sha256 == Document(id=id_, text=newest).sha256
                assert Extraction.model_validate_json(last[id_].value or b"") == stored
        found = {mention.document_id for n in (1, 2, 3) for mention in store.mentions(f"CD{n}", limit=1000)}
        assert found == alive
        indexed = {id_ for key in store._client.scan_iter(match="bb:m:*") for id_ in store._client.zrange(key, 0, -1)}
        assert indexed == {id_.encode() for id_ in alive}
        assert store.counts()["documents"] == len(alive)


def _key(document_id: str, kind: str) -> str:
    from shared.backends.stored_results import beside, document_key

    return beside(document_key(document_id), kind)


@pytest.mark.slow
def test_what_is_erased_comes_back_by_nothing_but_a_later_version(each_broker: Settings) -> None:
    settings = each_broker.model_copy(update={"partitions": 2})
    ensure_topics(settings)
    told = histories(7)
    count = send(settings, told, 8)
    options: dict[str, Any] = {"attempts": 1, "max_documents": 24, "breaker_run": 0, "breaker_share": 0}

    async def work() -> None:
        # The first one ends in the middle of it, and what it has not committed is done again.
        first = make(settings, slow, drain_s=0, **options)
        async with running(first):
            await until(lambda: first.status().processed > count // 4)
        second = make(settings, slow, **options)
        async with running(second):
            await caught_up(second, 1)

    asyncio.run(work())
    check(settings, told)
    # Of a version that was erased before it failed there is no dead letter.
    letters = DeadLetters(settings)
    for letter in letters.letters(Filter()):
        fields = json.loads(letter.record.value or b"")
        history = told[fields["id"]]
        assert fields["text"].startswith(FAILS)
        assert history.index(fields["text"]) >= 0
    # A replay of all dead letters, of which some are older than an erasure, now with a model that takes them.
    replayed = letters.replay(Filter()).resolved

    async def take(document: Document) -> Extraction:
        return await extract(document)

    if replayed:

        async def again() -> None:
            consumer = make(settings, take, **options)
            async with running(consumer):
                await caught_up(consumer, replayed)

        asyncio.run(again())
    with closing(ResultStore.from_settings(settings)) as store:
        for id_, history in told.items():
            if history[-1] is None:
                assert store.get(id_) is None
        before = {id_: store.get(id_) for id_ in told}
        store._client.flushall()
        rebuild(settings)
        assert {id_: store.get(id_) for id_ in told} == before
    with Audit(settings, settings.topic_documents, settings.topic_documents) as audit:
        counts = audit.run()
    assert counts.missing == 0
    assert counts.erasures
