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
Noisy = dict[tuple[str, int], Settings]


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
NOISE = {
    # The broker answers CORRUPT_MESSAGE.
    **{f"length {value}": _put(*_LENGTH, value) for value in (0, 5, -1, -(2**31))},
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
EPOCHS = {f"epoch {value}": _put(*_EPOCH, value) for value in (-7, 0, 999)}
RECORDS = 8
NOISY = (2, RECORDS - 1)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka, fresh: Callable[[str], Settings]) -> Iterator[Noisy]:
    """A broker's disk with noise: topics by its kind and by the batch that it is in."""
    topics: Noisy = {}
    changes: list[tuple[Settings, int, Callable[[bytearray], None]]] = []
    with Kafka(tmp_path_factory.mktemp("noisy")) as server:
        for (name, change), place in product((NOISE | EPOCHS).items(), NOISY):
            # Batches of more than 4 KB: the broker's index has an entry for each but the first.
            topics[name, place] = _filled(fresh(server.url), 5000)
            changes.append((topics[name, place], place, change))
        topics["small", 2] = _filled(fresh(server.url), 5)
        changes.append((topics["small", 2], 2, NOISE["length 5"]))
        server.stop()
        for settings, place, change in changes:
            change_log(server, settings.topic_documents, change, place)
        server.start()
        yield {key: settings.model_copy(update={"kafka": server.url}) for key, settings in topics.items()}


def _filled(settings: Settings, size: int) -> Settings:
    """Records of one partition, one a batch, each with its offset as its first byte."""
    settings = settings.model_copy(update={"partitions": 1})
    ensure_topics(settings)
    sink = Sink(settings)
    for offset in range(RECORDS):
        sink.send(settings.topic_documents, b"k", bytes([offset]) + os.urandom(size)).result(PATIENCE_S)
    sink.close()
    return settings


def _read_to_the_end(settings: Settings) -> list[Record]:
    """All that a source hands over until it is behind the last record, and then for a while."""
    source = Source(settings, settings.topic_documents, [settings.topic_documents], attempts=3)
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while not records or records[-1].offset + records[-1].span < RECORDS:
        assert time.monotonic() < deadline, [(record.offset, record.problem) for record in records]
        records += source.poll(0.2, 100)
    for _ in range(5):  # a position that is wrong has it begin again, or go on elsewhere
        records += source.poll(0.2, 100)
    source.commit({(settings.topic_documents, 0): RECORDS})
    assert source.lag() == source.lag(committed=True) == 0
    source.close()
    return records


@pytest.mark.slow
@pytest.mark.parametrize("place", NOISY)
@pytest.mark.parametrize("name", NOISE)
def test_noise_in_a_header_costs_the_batch_that_it_is_in(noisy: Noisy, name: str, place: int) -> None:
    records = _read_to_the_end(noisy[name, place])
    assert [(record.offset, record.span) for record in records] == [(offset, 1) for offset in range(RECORDS)]
    assert [record.offset for record in records if record.problem == "corrupt"] == [place]
    assert all((record.value or b"")[0] == record.offset for record in records if record.problem is None)


@pytest.mark.slow
@pytest.mark.parametrize("place", NOISY)
@pytest.mark.parametrize("name", EPOCHS)
def test_noise_in_what_tells_the_leader_costs_nothing(noisy: Noisy, name: str, place: int) -> None:
    records = _read_to_the_end(noisy[name, place])
    assert [(record.offset, record.problem) for record in records] == [(offset, None) for offset in range(RECORDS)]


@pytest.mark.slow
def test_what_the_broker_cannot_find_behind_it_is_told_with_it(noisy: Noisy) -> None:
    """Its index has no entry there: nobody can have these records."""
    records = _read_to_the_end(noisy["small", 2])
    assert [(record.offset, record.span, record.problem) for record in records] == [
        (0, 1, None),
        (1, 1, None),
        (2, RECORDS - 2, "corrupt"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["length 5", "length 2**31 - 1", "magic 0", "offset 2**40"])
def test_a_scan_sees_the_same(noisy: Noisy, name: str) -> None:
    settings = noisy[name, 2]
    scan = Scan(settings, settings.topic_documents)
    found = [record for some in scan.read() for record in some]
    assert [record.offset for record in found] == [*range(RECORDS)]
    assert [record.offset for record in found if record.problem is not None] == [2]
    scan.close()


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
