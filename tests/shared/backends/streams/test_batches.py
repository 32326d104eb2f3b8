"""Codecs of other producers, and batches that nobody can read."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import crc32c
import pytest
from kafka import KafkaProducer

from shared.backends.records import Record
from shared.backends.streams.client import client_options
from shared.backends.streams.scan import Scan
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics
from shared.settings import Settings
from tests.support.kafka import Kafka, batches, change_batches, damage, set_codec
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
