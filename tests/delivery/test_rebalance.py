"""Consumers that join, stop and are killed under load, as processes of their own, lose nothing.

Run as a program, this file is a consumer; its settings come from the environment, its arguments are a file, where it
notes what it has done, and its name as a static member, which may be empty.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.audit import Audit
from shared.backends.streams.scan import Lag
from shared.backends.streams.sink import Sink
from shared.backends.streams.topics import ensure_topics
from shared.messages import Document, Extraction
from shared.settings import Settings
from tests.services.ingest.test_consumer import PATIENCE_S, check_results, document, extract, make

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(each_broker: Settings) -> Settings:
    settings = each_broker.model_copy(update={"partitions": 4})
    ensure_topics(settings)
    return settings


class Member:
    """A consumer in a process of its own."""

    def __init__(self, settings: Settings, notes: Path, instance: str = "") -> None:
        names = ("kafka", "topic_documents", "topic_entities", "topic_dead_letters", "topic_feedback")
        given = {f"BIOBRACKET_{name.upper()}": str(getattr(settings, name)) for name in names}
        given["BIOBRACKET_REDIS"] = settings.redis.get_secret_value()
        self._notes = notes
        self._notes.touch()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(notes), instance],
            env=os.environ | given | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )

    def works(self) -> None:
        """Waits until it has done a document more."""
        before, deadline = self._notes.stat().st_size, time.monotonic() + PATIENCE_S
        while self._notes.stat().st_size == before:
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def send(self, number: int) -> None:
        self._process.send_signal(number)
        self._process.wait(PATIENCE_S)


class Load:
    """Documents that come all the time."""

    def __init__(self, settings: Settings) -> None:
        self.sent = 0
        self._sink = Sink(settings)
        self._topic = settings.topic_documents
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._enough.wait(0.02):
            self._sink.send(self._topic, b"%d" % self.sent, document(self.sent))
            self.sent += 1

    @contextmanager
    def coming(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._enough.set()
            self._thread.join()
            self._sink.close()


def test_consumers_come_and_go_and_nothing_is_lost(settings: Settings, tmp_path: Path) -> None:
    members: list[Member] = []

    def join() -> Member:
        members.append(Member(settings, tmp_path / f"member-{len(members)}"))
        members[-1].works()
        return members[-1]

    load = Load(settings)
    try:
        with load.coming():
            first = join()
            second = join()
            third = join()
            first.send(signal.SIGTERM)
            second.works()
            fourth = join()
            second.send(signal.SIGKILL)
            third.works()  # on what it has: the dead one's partitions are free when its session is over
            fifth = join()
            third.send(signal.SIGTERM)
            fourth.send(signal.SIGKILL)
            fifth.works()
        work_off(settings)
    finally:
        for member in members:
            member.send(signal.SIGTERM)
    check(settings, load.sent)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("each_broker", ["kafka"], indirect=True)
def test_ten_joins_and_leaves_lose_and_double_nothing(settings: Settings, tmp_path: Path, static: bool) -> None:
    members: list[Member] = []
    started = itertools.count()

    def join(place: int) -> Member:
        instance = f"member-{place}" if static else ""
        members.append(Member(settings, tmp_path / f"member-{next(started)}", instance))
        members[-1].works()
        return members[-1]

    load = Load(settings)
    try:
        with load.coming():
            group = [join(place) for place in range(3)]
            for turn in range(10):
                # Both ways to go, and each member's turn comes. A static one's successor has the same name.
                group[turn % 3].send(signal.SIGKILL if turn % 2 else signal.SIGTERM)
                group[turn % 3] = join(turn % 3)
        work_off(settings)
    finally:
        for member in members:
            member.send(signal.SIGTERM)
    check(settings, load.sent)


def work_off(settings: Settings) -> None:
    lag = Lag(settings, settings.topic_documents, settings.topic_documents)
    deadline = time.monotonic() + PATIENCE_S
    while lag.read():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    lag.close()


def check(settings: Settings, sent: int) -> None:
    """No document is lost, nor published as two different results."""
    check_results(settings, range(sent))
    with Audit(settings, settings.topic_documents, settings.topic_documents) as audit:
        counts = audit.run()
    assert (counts.records, counts.results, counts.missing) == (sent, sent, 0)


async def _consume(notes: Path, instance: str) -> None:
    async def process(document: Document) -> Extraction:
        await asyncio.sleep(random.uniform(0.02, 0.5))
        extraction = await extract(document)
        with notes.open("a") as file:
            file.write(f"{document.id}\n")
        return extraction

    consumer = make(Settings(), process, instance=instance)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, consumer.stop)
    await consumer.run()


if __name__ == "__main__":
    asyncio.run(_consume(Path(sys.argv[1]), sys.argv[2]))
