from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from shared.backends.records import dead_letter_headers
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.errors import StreamError
from shared.settings import Settings
from tests.support.streams import PATIENCE_S, read


def test_records_arrive_as_they_were_sent(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    before = time.time_ns() // 1_000_000
    headers = (("a", b"1"), ("a", b"\x00\xff"))
    sink.send(stream.topic_documents, b"k", "患者".encode(), headers).result(PATIENCE_S)
    (record,) = read(source(), 1)
    assert (record.key, record.value, record.headers) == (b"k", "患者".encode(), headers)
    assert record.topic == stream.topic_documents
    assert record.offset == 0
    assert record.timestamp_ms >= before


def test_records_of_a_key_keep_their_order(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    sent = [f"{n}".encode() for n in range(200)]
    for value in sent:
        sink.send(stream.topic_documents, b"one", value)
    sink.flush(PATIENCE_S)
    records = read(source(), len(sent))
    assert [record.value for record in records] == sent
    assert len({record.partition for record in records}) == 1


def test_a_record_of_ten_megabytes_passes(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    value = bytes(range(256)) * 40_000
    sink.send(stream.topic_documents, b"big", value).result(PATIENCE_S)
    sink.send(stream.topic_documents, b"big", b"next").result(PATIENCE_S)
    assert [record.value for record in read(source(), 2)] == [value, b"next"]


def test_a_record_above_the_limit_is_refused(stream: Settings, sink: Sink) -> None:
    future = sink.send(stream.topic_documents, b"k", bytes(stream.max_message_bytes + 100_000))
    with pytest.raises(StreamError, match="max_message_bytes") as refused:
        future.result(PATIENCE_S)
    assert not refused.value.retryable


def test_keyless_and_empty_records_pass(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    for key, value in ((None, b"v"), (b"k", None), (b"k", b""), (None, None)):
        sink.send(stream.topic_documents, key, value).result(PATIENCE_S)
    assert {(record.key, record.value) for record in read(source(), 4)} == {
        (None, b"v"),
        (b"k", None),
        (b"k", b""),
        (None, b""),
    }


def test_a_dead_letter_can_be_replayed(stream: Settings, sink: Sink, source: Callable[..., Source]) -> None:
    sink.send(stream.topic_documents, b"k", b"\xff not json", (("trace", b"1"),)).result(PATIENCE_S)
    (record,) = read(source(), 1)
    headers = dead_letter_headers(record, "not_json")
    sink.send(stream.topic_dead_letters, record.key, record.value, headers).result(PATIENCE_S)
    dead = Source(stream, f"g-{stream.topic_documents}", [stream.topic_dead_letters])
    (letter,) = read(dead, 1)
    dead.close()
    assert (letter.key, letter.value) == (record.key, record.value)
    told = dict(letter.headers)
    assert told["biobracket.reason"] == b"not_json"
    assert told["biobracket.topic"].decode() == stream.topic_documents
    assert (int(told["biobracket.partition"]), int(told["biobracket.offset"])) == (record.partition, record.offset)
    assert told["trace"] == b"1"
