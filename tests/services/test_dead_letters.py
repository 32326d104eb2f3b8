"""Letters of a real consumer on real brokers: listed, replayed, dropped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest

from services.audit import Audit
from services.dead_letters import Counts, DeadLetters, Filter
from shared.backends.records import Record, dead_letter_headers, origin, position_of
from shared.backends.result_store import ResultStore
from shared.backends.streams.sink import Sink
from shared.messages import Document, Extraction
from shared.settings import Settings
from tests.services.ingest.test_consumer import consume, document, extract, make, produce


@pytest.fixture
def settings(each_broker: Settings) -> Settings:
    return each_broker


@pytest.fixture
def store(settings: Settings) -> Iterator[ResultStore]:
    made = ResultStore.from_settings(settings)
    yield made
    made.close()


def failing(*ids: str) -> Callable[[Document], object]:
    async def process(document: Document) -> Extraction:
        if document.id in ids:
            raise ValueError("a service is broken")
        return await extract(document)

    return process


def test_letters_are_listed_and_replayed_in_their_place(settings: Settings, store: ResultStore) -> None:
    produce(settings, [b"not json", *(document(n) for n in range(6))])
    asyncio.run(consume(make(settings, failing("d-2", "d-4"), attempts=1), 7))  # type: ignore[arg-type]
    letters = DeadLetters(settings)
    found = list(letters.letters(Filter()))
    assert sorted(letter.reason for letter in found) == ["exhausted", "exhausted", "not_json"]
    assert {letter.origin.topic for letter in found} == {settings.topic_documents}
    # Meanwhile one of them was amended: the replay must not bring the old one back.
    amended = json.dumps({"id": "d-2", "text": "amended CD99"}).encode()
    sink = Sink(settings)
    sink.send(settings.topic_documents, b"2", amended).result(60)
    sink.close()
    asyncio.run(consume(make(settings, extract), 1))
    assert letters.replay(Filter(reasons=("exhausted",))) == Counts(2)
    asyncio.run(consume(make(settings, extract), 2))
    again = store.get("d-4")
    assert again is not None
    assert again.source in [letter.origin for letter in found]
    newest = store.get("d-2")
    assert newest is not None
    assert {entity.text for entity in newest.entities} == {"CD99"}
    with Audit(settings, settings.topic_documents, settings.topic_documents) as audit:
        assert audit.run().missing == 0
    assert [letter.reason for letter in letters.letters(Filter())] == ["not_json"]
    resolved = [letter for letter in letters.letters(Filter(resolved=True)) if letter.resolution]
    assert [letter.resolution for letter in resolved] == ["replayed", "replayed"]


def test_filters_and_drop(settings: Settings) -> None:
    produce(settings, [b"not json", b'{"id": "x"}', b"", document(1)])
    asyncio.run(consume(make(settings, extract), 4))
    letters = DeadLetters(settings)
    found = {letter.reason: letter for letter in letters.letters(Filter())}
    assert found.keys() == {"not_json", "invalid", "empty"}
    assert found["invalid"].field == "text"
    place = found["not_json"].place
    assert [letter.reason for letter in letters.letters(Filter(places=(place,)))] == ["not_json"]
    at = found["invalid"].at_ms
    assert list(letters.letters(Filter(since_ms=at + 60_000))) == []
    assert list(letters.letters(Filter(until_ms=at - 60_000))) == []
    # What holds no document is told and stays.
    assert letters.replay(Filter(reasons=("empty",))) == Counts(0, 1)
    assert letters.drop(Filter(places=(place,))) == Counts(1)
    assert sorted(letter.reason for letter in letters.letters(Filter())) == ["empty", "invalid"]
    assert letters.drop(Filter()) == Counts(2)
    assert list(letters.letters(Filter())) == []
    with pytest.raises(ValueError, match="list"):
        Filter(places=("somewhere",))


def test_others_records_are_no_letters(settings: Settings) -> None:
    produce(settings, [])
    sink = Sink(settings)
    record = Record("t", 1, 2, None, b"v", 3)
    sink.send(settings.topic_dead_letters, None, b"of another program").result(60)
    sink.send(settings.topic_dead_letters, None, b"v", dead_letter_headers(record, "invalid")).result(60)
    sink.close()
    (letter,) = DeadLetters(settings).letters(Filter())
    assert letter.origin == position_of(record) == origin(letter.record)
