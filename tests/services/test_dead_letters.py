"""Letters of a real consumer on real brokers: listed, replayed, dropped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit import Audit
from services.dead_letters import DeadLetterCounts, DeadLetters, Filter, _in_order, _Place, printable
from shared.backends.records import Record, dead_letter_headers, origin, own_headers, position_of
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Scan
from shared.backends.streams.sink import Sink
from shared.errors import StreamError
from shared.messages import Document, Extraction, SourcePosition
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
    assert letters.replay(Filter(reasons=("exhausted",))) == DeadLetterCounts(2)
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
    assert letters.replay(Filter(reasons=("empty",))) == DeadLetterCounts(0, 1)
    assert letters.drop(Filter(places=(place,))) == DeadLetterCounts(1)
    assert sorted(letter.reason for letter in letters.letters(Filter())) == ["empty", "invalid"]
    assert letters.drop(Filter()) == DeadLetterCounts(2)
    assert list(letters.letters(Filter())) == []
    with pytest.raises(ValueError, match="list"):
        Filter(places=("somewhere",))


def test_a_replay_keeps_the_order_of_versions(settings: Settings) -> None:
    """Whatever the order in which they were buried."""
    settings = settings.model_copy(update={"partitions": 1})
    produce(settings, [])
    sink = Sink(settings)
    for offset in (7, 3, 5):
        record = Record(settings.topic_documents, 0, offset, b"k", b"%d" % offset, 1000, (("trace", b"1"),))
        headers = dead_letter_headers(record, "exhausted")
        sink.send(settings.topic_dead_letters, b"k", record.value, headers).result(60)
    sink.close()
    assert DeadLetters(settings).replay(Filter()) == DeadLetterCounts(3)
    with closing(Scan(settings, settings.topic_documents)) as scan:
        sent = [record for batch in scan.read() for record in batch]
    assert [(record.value, position_of(record).offset) for record in sent] == [(b"3", 3), (b"5", 5), (b"7", 7)]
    assert {own_headers(record) for record in sent} == {(("trace", b"1"),)}


def test_what_the_broker_does_not_take_stays_open(settings: Settings) -> None:
    settings = settings.model_copy(update={"partitions": 1})
    produce(settings, [])
    sink = Sink(settings)
    for offset, value in enumerate((b"x" * 100_000, b"2")):
        record = Record(settings.topic_documents, 0, offset, b"k", value, 1000)
        headers = dead_letter_headers(record, "exhausted")
        sink.send(settings.topic_dead_letters, b"k", value, headers).result(60)
    sink.close()
    with pytest.raises(StreamError):
        DeadLetters(settings.model_copy(update={"max_message_bytes": 1024})).replay(Filter())
    assert [letter.origin.offset for letter in DeadLetters(settings).letters(Filter())] == [0]


def test_feedback_taken_back_can_be_replayed(settings: Settings) -> None:
    produce(settings, [])
    record = Record(settings.topic_feedback, 0, 1, b"o", None, 3)
    sink = Sink(settings)
    sink.send(settings.topic_dead_letters, b"o", None, dead_letter_headers(record, "exhausted")).result(60)
    sink.close()
    assert DeadLetters(settings).replay(Filter()) == DeadLetterCounts(1)
    with closing(Scan(settings, settings.topic_feedback)) as scan:
        assert [(r.key, r.value) for batch in scan.read() for r in batch] == [(b"o", None)]


places = st.builds(
    lambda partition, offset, time: _Place(
        SourcePosition(topic="t", partition=partition, offset=offset, timestamp_ms=time), "", 0
    ),
    *(st.integers(0, 2), st.integers(0, 20), st.integers(0, 5)),
)


@given(st.lists(places, unique_by=lambda place: (place.origin.partition, place.origin.offset)))
def test_the_order_is_by_offset_within_a_partition(found: list[_Place]) -> None:
    ordered = list(_in_order(found))
    assert sorted(ordered, key=found.index) == found
    for place, first in enumerate(ordered):
        for later in ordered[place + 1 :]:
            assert first.origin.partition != later.origin.partition or later.origin.later_than(first.origin)


def test_others_records_are_no_letters(settings: Settings) -> None:
    produce(settings, [])
    sink = Sink(settings)
    record = Record("t", 1, 2, None, b"v", 3)
    sink.send(settings.topic_dead_letters, None, b"of another program").result(60)
    sink.send(settings.topic_dead_letters, None, b"", (("biobracket.resolves", b"\xff"),)).result(60)
    sink.send(settings.topic_dead_letters, None, b"v", dead_letter_headers(record, "invalid")).result(60)
    sink.close()
    (letter,) = DeadLetters(settings).letters(Filter())
    assert letter.origin == position_of(record) == origin(letter.record)


@given(st.binary())
def test_headers_control_no_terminal(value: bytes) -> None:
    assert printable(value).isprintable()
    assert printable("诊断 ok".encode()) == "诊断 ok"
