"""Members of a group, and what a test reads with them."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.embedded.servers import Broker
from shared.backends.records import Partition, Record
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.settings import Settings

PATIENCE_S = 90.0
needs_noida = pytest.mark.skipif(importlib.util.find_spec("noida_db") is None, reason="noida-db is not installed")


class Noida(Broker):
    """noida-db, another server that speaks the Kafka protocol; it keeps its records in its folder."""

    name = "noida"

    def _command(self) -> list[str]:
        spec = importlib.util.find_spec("noida_db")
        assert spec is not None
        assert spec.origin is not None
        binary = Path(spec.origin).parent / "noida-db"
        binary.chmod(0o755)
        return [str(binary), "start", "--data-dir", ".", "--only", "kafka", "--kafka-port", str(self.port)]


def fill(sink: Sink, settings: Settings, count: int) -> dict[bytes, bytes]:
    sent = {f"key-{n}".encode(): f"值 {n}".encode() for n in range(count)}
    for future in [sink.send(settings.topic_documents, key, value) for key, value in sent.items()]:
        future.result(PATIENCE_S)
    return sent


def read(source: Source, count: int) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(records) < count and time.monotonic() < deadline:
        records += source.poll(0.5, 100)
    return records


def until(source: Source, condition: Callable[[], bool]) -> None:
    """Polls, of a topic without records, until the group has settled so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        assert source.poll(0.2, 100) == []
    assert condition()


def ends(records: list[Record]) -> dict[Partition, int]:
    ends: dict[Partition, int] = {}
    for record in records:
        place = record.topic, record.partition
        ends[place] = max(ends.get(place, 0), record.offset + 1)
    return ends


class Member:
    """A source that polls in a thread of its own, as a replica's does."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.read: list[Record] = []
        self._done = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._work = self._thread.submit(self._poll)

    def _poll(self) -> None:
        while not self._done.is_set():
            self.read += self.source.poll(0.2, 10)

    def stop(self) -> None:
        self._done.set()
        self._work.result()
        self._thread.shutdown()

    def __enter__(self) -> Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def places(records: list[Record]) -> list[tuple[int, int]]:
    return sorted((record.partition, record.offset) for record in records)
