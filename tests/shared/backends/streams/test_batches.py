"""Codecs of other producers, and batches that nobody can read."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import crc32c
import pytest
from kafka import KafkaProducer

from shared.backends.records import Record
from shared.backends.streams.batches import Places
from shared.backends.streams.client import client_options
from shared.backends.streams.scan import Scan
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics
from shared.settings import Settings
from tests.support.kafka import Kafka, batches, change_batches, change_log, damage, set_codec
from tests.support.streams import PATIENCE_S, read

CODECS = ["gzip", "snappy", "lz4", "zstd"]
# Above what some decoders take for the most without being told the size.
LARGE = os.urandom(700_000).hex().encode()


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read(stream: Settings, source: Callable[..., Source], codec: str) -> None:
    producer = KafkaProducer(**client_options(stream), compression_type=codec, max_request_size=2**24)
    values = [b"CD28", "患者 😀".encode(), LARGE]
    for value in values:
        producer.send(stream.topic_documents, value, key=b"k").get(PATIENCE_S)
    producer.close()
    assert [record.value for record in read(source(), len(values))] == values


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat (librdkafka) is not installed")
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_of_librdkafka_is_read(kafka: Kafka, fresh: Callable[[str], Settings], codec: str) -> None:
    settings = fresh(kafka.url)
    ensure_topics(settings)
    lines = [f"note {n} of {codec}" for n in range(200)]
    subprocess.run(
        ["kcat", "-P", "-b", settings.kafka, "-t", settings.topic_documents, "-p", "0", "-z", codec],
        input="\n".join(lines).encode(),
        check=True,
        timeout=PATIENCE_S,
    )
    source = Source(settings, settings.topic_documents, [settings.topic_documents])
    assert [(record.value or b"").decode() for record in read(source, len(lines))] == lines
    source.close()


@pytest.fixture
def own(tmp_path: Path, kafka: Kafka) -> Iterator[Kafka]:
    """A broker of the test's own; `kafka` skips where there is none."""
    with Kafka(tmp_path) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(("change", "problem"), [(damage, "corrupt"), (set_codec, "codec")])
def test_what_cannot_be_read_is_handed_over_as_it_is(
    own: Kafka, fresh: Callable[[str], Settings], change: Callable[[bytearray], None], problem: str
) -> None:
    settings = fresh(own.url).model_copy(update={"partitions": 1})
    ensure_topics(settings)
    sink = Sink(settings)
    for value in (b"a", b"b", b"c", b"d", b"e"):  # one a batch
        sink.send(settings.topic_documents, b"k", value).result(PATIENCE_S)
    sink.close()
    change_batches(own, settings.topic_documents, change, 1, 4)
    settings = settings.model_copy(update={"kafka": own.url})
    source = Source(settings, settings.topic_documents, [settings.topic_documents], attempts=3)
    records = read(source, 5)
    assert [(record.offset, record.problem) for record in records] == [
        (0, None),
        (1, problem),
        (2, None),
        (3, None),
        (4, problem),
    ]
    assert [record.value for record in records if record.problem is None] == [b"a", b"c", b"d"]
    assert all(_is_batch(record) for record in records if record.problem is not None)
    source.commit({(settings.topic_documents, 0): 5})
    assert source.lag(committed=True) == 0
    source.close()
    scan = Scan(settings, settings.topic_documents)
    assert [record.problem for some in scan.read() for record in some] == [each.problem for each in records]
    scan.close()


def _put(layout: str, at: int, value: int | Callable[[int], int]) -> Callable[[bytearray], None]:
    """Another value of a field in a batch's header."""

    def change(batch: bytearray) -> None:
        (before,) = struct.unpack_from(layout, batch, at)
        struct.pack_into(layout, batch, at, value(before) if callable(value) else value)

    return change


def _fill(byte: int) -> Callable[[bytearray], None]:
    def change(batch: bytearray) -> None:
        batch[:61] = bytes([byte]) * 61

    return change


_LENGTH, _EPOCH, _MAGIC, _DELTA = (">i", 8), (">i", 12), (">b", 16), (">i", 23)
TOO_SHORT = {f"length {value}": _put(*_LENGTH, value) for value in (0, 5, -1, -(2**31))}
NOISE = {
    # The broker answers CORRUPT_MESSAGE.
    **TOO_SHORT,
    # It finds the next batch where there is none.
    "length 1 more": _put(*_LENGTH, lambda size: size + 1),
    "length 10 less": _put(*_LENGTH, lambda size: size - 10),
    "length of two and a half": _put(*_LENGTH, lambda size: size * 5 // 2),
    # It sends nothing, as at the end of the log.
    "length 2**31 - 1": _put(*_LENGTH, 2**31 - 1),
    # It answers UNKNOWN_SERVER_ERROR, or INVALID_RECORD.
    **{f"magic {value}": _put(*_MAGIC, value) for value in (0, 1, -1)},
    "magic 3": _put(*_MAGIC, 3),
    # The checksum is right.
    "offset 2**40": _put(">q", 0, 2**40),
    "offset below 0": _put(">q", 0, -5),
    "an earlier offset": _put(">q", 0, 0),
    "the next offset": _put(">q", 0, lambda offset: offset + 1),
    "a later offset": _put(">q", 0, lambda offset: offset + 3),
    # It is not, and neither is what the batch says of its end.
    "count 2**30": _put(*_DELTA, 2**30),
    "count below 0": _put(*_DELTA, -9),
    "count 3": _put(*_DELTA, 2),
    "a header of ones": _fill(255),
    "a header of zeros": _fill(0),
}
EPOCHS = {f"epoch {value}": _put(*_EPOCH, value) for value in (-7, 1, 999)}
RECORDS = 8
KINDS = [*product(NOISE | EPOCHS, (2, RECORDS - 1)), ("small", 2)]
"""What noise is in which batch; each has a partition of its own."""


@pytest.fixture(scope="module")
def noisy(
    tmp_path_factory: pytest.TempPathFactory, kafka: Kafka, fresh: Callable[[str], Settings]
) -> Iterator[Settings]:
    """A broker whose disk has noise: a topic with a partition for each kind. Every record is a batch of its own."""
    with Kafka(tmp_path_factory.mktemp("noisy")) as server:
        settings = fresh(server.url).model_copy(update={"partitions": len(KINDS)})
        ensure_topics(settings)
        producer = KafkaProducer(**client_options(settings))
        for offset in range(RECORDS):
            for sent in [
                # More than 4 KB: the broker's index has an entry for each but the first.
                producer.send(
                    settings.topic_documents, _value(offset, 5 if name == "small" else 5000), partition=number
                )
                for number, (name, _) in enumerate(KINDS)
            ]:
                sent.get(PATIENCE_S)
        producer.close()
        for number, (name, place) in enumerate(KINDS):
            change = NOISE["length 5"] if name == "small" else (NOISE | EPOCHS)[name]
            change_log(server, settings.topic_documents, change, place, partition=number)
        yield settings


def _value(offset: int, size: int) -> bytes:
    return bytes([offset]) + os.urandom(size)


@pytest.fixture(scope="module")
def handed_over(noisy: Settings) -> dict[tuple[str, int], list[Record]]:
    """All that a source hands over of each kind until it is behind the last record of all, and then for a while."""
    source = Source(noisy, noisy.topic_documents, [noisy.topic_documents], attempts=3)
    records: dict[int, list[Record]] = {number: [] for number in range(len(KINDS))}

    def poll() -> None:
        for record in source.poll(0.2, 100):
            records[record.partition].append(record)

    deadline = time.monotonic() + 6 * PATIENCE_S
    while missing := [KINDS[n] for n, found in records.items() if not found or _behind(found) < RECORDS]:
        assert time.monotonic() < deadline, missing
        poll()
    for _ in range(5):  # a position that is wrong has it begin again, or go on elsewhere
        poll()
    source.commit({(noisy.topic_documents, number): RECORDS for number in records})
    assert source.lag() == source.lag(committed=True) == 0
    source.close()
    return {KINDS[number]: found for number, found in records.items()}


def _behind(records: list[Record]) -> int:
    return records[-1].offset + records[-1].span


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*product(NOISE, (2, RECORDS - 1))], ids=str)
def test_noise_in_a_header_costs_the_batch_that_it_is_in(
    handed_over: dict[tuple[str, int], list[Record]], kind: tuple[str, int]
) -> None:
    records = handed_over[kind]
    # Of the last batch, one that is too short by its length ends where the log does: its checksum is right there.
    lost = [] if kind in product(TOO_SHORT, [RECORDS - 1]) else [kind[1]]
    assert [(record.offset, record.span) for record in records] == [(offset, 1) for offset in range(RECORDS)]
    assert [record.offset for record in records if record.problem == "corrupt"] == lost
    assert all((record.value or b"")[0] == record.offset for record in records if record.problem is None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*product(EPOCHS, (2, RECORDS - 1))], ids=str)
def test_noise_in_what_tells_the_leader_costs_nothing(
    handed_over: dict[tuple[str, int], list[Record]], kind: tuple[str, int]
) -> None:
    assert [(r.offset, r.problem) for r in handed_over[kind]] == [(offset, None) for offset in range(RECORDS)]


@pytest.mark.slow
def test_what_the_broker_cannot_find_behind_it_is_told_with_it(
    handed_over: dict[tuple[str, int], list[Record]],
) -> None:
    """Its index has no entry there: nobody can have these records."""
    assert [(record.offset, record.span, record.problem) for record in handed_over["small", 2]] == [
        (0, 1, None),
        (1, 1, None),
        (2, RECORDS - 2, "corrupt"),
    ]


@pytest.mark.slow
def test_a_scan_sees_the_same(noisy: Settings, handed_over: dict[tuple[str, int], list[Record]]) -> None:
    scan = Scan(noisy, noisy.topic_documents)
    found: dict[tuple[str, int], list[tuple[int, int, str | None]]] = {kind: [] for kind in KINDS}
    for records in scan.read():
        for record in records:
            found[KINDS[record.partition]].append((record.offset, record.span, record.problem))
    scan.close()
    assert found == {kind: [(r.offset, r.span, r.problem) for r in records] for kind, records in handed_over.items()}


def test_where_the_broker_has_nothing_up_to_the_end_nothing_is_given_up() -> None:
    """Such a broker is at fault as a whole, and may recover."""
    places = Places(3, 100, lambda _: 0)
    places.ends["p"] = 7
    told = [places.failed("p", 5, 3) for _ in range(6)]
    assert told == [True, True, True, True, False, True]
    assert places.asked("p", 5) == 5


def test_what_is_found_behind_a_gap_counts_once_the_gap_has_failed_again() -> None:
    places = Places(1, 100, lambda _: 0)
    places.failed("p", 5, 1, b"bytes")
    gap = places.gap("p", 5)
    assert gap is not None
    assert places.asked("p", 5) == 6
    assert not places.confirmed("p", gap)
    assert places.asked("p", 5) == 5
    places.failed("p", 5, 1)
    assert (places.asked("p", 5), gap.value) == (6, b"bytes")
    assert places.confirmed("p", gap)
    assert places.gap("p", 5) is None


def test_a_gap_is_past_where_the_position_moved() -> None:
    places = Places(1, 100, lambda _: 0)
    places.failed("p", 5, 1)
    assert places.gap("p", 6) is None
    assert places.asked("p", 6) == 6


def test_a_leader_epoch_is_believed_from_the_last_one_to_the_newest() -> None:
    newest: dict[str, int] = {"p": 3}
    places = Places(1, 100, newest.get)
    assert [places.epoch("p", told) for told in (1, 0, 2, 4, 3, -7, 3)] == [1, -1, 2, -1, 3, -1, 3]
    assert places.epoch("unknown", 0) == -1


def _is_batch(record: Record) -> bool:
    """The bytes are those of the one batch that begins at the record's offset."""
    value = record.value or b""
    offset, length = struct.unpack_from(">qi", value)
    return bool(offset == record.offset and length + 12 == len(value) and record.span == 1)


def test_the_checksum_of_a_batch_is_known_here() -> None:
    """What the tests above rest on: damage spoils it, another codec keeps it."""
    batch = bytearray(80)
    struct.pack_into(">qi", batch, 0, 7, 68)
    struct.pack_into(">I", batch, 17, crc32c.crc32c(bytes(batch[21:])))
    (again,) = batches(bytes(batch))
    damage(again)
    assert struct.unpack_from(">I", again, 17)[0] != crc32c.crc32c(bytes(again[21:]))
    set_codec(batch)
    assert struct.unpack_from(">I", batch, 17)[0] == crc32c.crc32c(bytes(batch[21:]))
