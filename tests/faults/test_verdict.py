"""The verdict finds what it is for: documents that are lost, stale, doubled or dead."""

from __future__ import annotations

import asyncio
import json

import pytest
import redis

from shared.backends import mention_index, stored_results
from shared.backends.result_store import ResultStore
from shared.backends.streams.sink import Sink
from shared.messages import Document, Extraction
from shared.settings import Settings
from tests.faults.verdict import Verdict, _documents, _records, judge
from tests.faults.workload import versions
from tests.services.ingest.test_consumer import consume, extract, make, produce


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"partitions": 1})


def published(settings: Settings, document: Document, **changes: object) -> None:
    """A record that nobody but this test puts on the topic of entities."""
    extraction = asyncio.run(extract(document)).model_copy(update=changes)
    sink = Sink(settings)
    sink.send(settings.topic_entities, document.id.encode(), extraction.model_dump_json().encode()).result(60)
    sink.close()


def test_each_fault_is_found(settings: Settings) -> None:
    sent = list(versions("v", 30))
    expected = {document.id: document for document in sent}
    produce(settings, [document.model_dump_json().encode() for document in sent])
    asyncio.run(consume(make(settings, extract), len(sent)))
    assert judge(settings, expected, expected) == Verdict()

    never = Document(id="never", text="was never sent")
    assert judge(settings, {**expected, "never": never}, expected).lost == 1
    amended = Document(id=sent[0].id, text="amended")
    assert judge(settings, {**expected, amended.id: amended}, expected).stale == 1

    # As another client may have read the topic of entities: without one document's result.
    whole = [record.value or b"" for record in _records(settings, settings.topic_entities)]
    some = [value for value in whole if Extraction.model_validate_json(value).document_id != sent[0].id]
    assert judge(settings, expected, expected, whole) == Verdict()
    assert judge(settings, expected, expected, some) == Verdict(lost=1)

    produce(settings, [b'{"id": "bad", "text": "t", "types": ["no"]}'])
    asyncio.run(consume(make(settings, extract), 1))
    assert judge(settings, expected, expected) == Verdict()

    store = ResultStore.from_settings(settings)
    (kept,) = store.newest([sent[0].id])
    assert kept is not None
    # The same record once more, as after a crash in between: its key tells.
    sink = Sink(settings)
    sink.send(settings.topic_entities, kept.document_id.encode(), kept.model_dump_json().encode()).result(60)
    sink.close()
    assert judge(settings, expected, expected) == Verdict(repeated=1)
    published(settings, expected[kept.document_id], source=kept.source, model_revision="another")
    assert judge(settings, expected, expected).doubled == 1

    last = sent[-1]
    older = Document(id=last.id, text="an older text")
    published(settings, older, source=None)
    assert judge(settings, expected, expected).stale == 1

    with redis.Redis.from_url(settings.redis.get_secret_value()) as client:
        # Redis alone serves an earlier version.
        first = sent[1]
        (served,) = store.newest([first.id])
        assert served is not None
        key = stored_results.document_key(first.id)
        raw = client.hget(key, "json")
        client.hset(key, "json", served.model_copy(update={"text_sha256": "0" * 64}).model_dump_json())
        assert judge(settings, expected, expected).stale == 2
        client.hset(key, "json", raw)
        # The index of mentions has lost one.
        (entity, *_) = served.entities
        name = store._vault.name("mention", mention_index._normal(entity.text))
        index = mention_index._key(name, entity.type)
        kept_index = client.dump(index)
        client.delete(index)
        assert judge(settings, expected, expected).lost > 0
        client.restore(index, 0, kept_index)
        assert judge(settings, expected, expected).lost == 0

        client.hincrby(stored_results.counter_key(stored_results.document_key(last.id)), "documents", 1)
        assert judge(settings, expected, expected).doubled == 2
        client.delete(stored_results.document_key(last.id))
    assert judge(settings, expected, expected).lost == 1
    store.close()


def test_dead_letters_are_accounted_for(settings: Settings) -> None:
    async def broken(document: Document) -> Extraction:
        raise ValueError

    document = Document(id="d", text="CD28")
    produce(settings, [json.dumps({"id": "d", "text": "CD28"}).encode()])
    asyncio.run(consume(make(settings, broken, attempts=1), 1))
    assert judge(settings, {"d": document}, {}) == Verdict(dead=1)


def test_documents_are_found_in_the_bytes_of_a_batch() -> None:
    whole = b'{"id":"d","text":"CD28 {1}"}'
    assert list(_documents(whole)) == [whole]
    assert list(_documents(b"\x00\xff{" + whole + b"\x01}" + whole + b"{")) == [whole, whole]
