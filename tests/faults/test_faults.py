"""`make test-faults`: the product on Apache Kafka and Redis, with each of its parts broken in turn.

Each row sends documents and amendments, breaks something while they are under way, and judges what became of them, all
from outside. The table is printed at the end, and written where `BIOBRACKET_FAULTS_TABLE` says.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.hardware import hardware
from services.dead_letters import DeadLetters, Filter
from services.ingest.config import IngestConfig
from services.rebuild import rebuild
from shared.backends.streams.source import Source
from shared.messages import Document
from tests.faults.system import System
from tests.faults.verdict import Verdict, judge
from tests.faults.workload import Expected, Producer, versions
from tests.support import deadly
from tests.support.kafka import Unavailable, batches, change_batches, damage
from tests.support.redis_server import Unavailable as NoRedis

pytestmark = [pytest.mark.faults, pytest.mark.slow]

DOCUMENTS = 240
SOAK = int(os.environ.get("BIOBRACKET_FAULTS_SOAK", "20000"))
AWAY_S = 60.0
CODECS = ("gzip", "snappy", "lz4", "zstd")


@dataclass
class Row:
    fault: str
    documents: int
    verdict: Verdict
    seconds: float

    def cells(self) -> list[str]:
        found = self.verdict
        counts = (self.documents, found.lost, found.doubled, found.stale, found.dead, found.repeated)
        return [self.fault, *map(str, counts), f"{self.seconds:.1f}"]


HEAD = ["fault", "documents", "lost", "doubled", "stale", "dead letters", "sent again", "seconds to recover"]
ROWS: list[Row] = []


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    try:
        made = System(tmp_path_factory.mktemp("faults"))
    except (Unavailable, NoRedis) as missing:
        pytest.skip(str(missing))
    with made as running:
        yield running
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *(row.cells() for row in ROWS))]
    print(f"\n{hardware()}\n\n" + "\n".join(lines))
    if file := os.environ.get("BIOBRACKET_FAULTS_TABLE"):
        Path(file).write_text(f"{hardware()}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def run(
    system: System,
    name: str,
    fault: Callable[[], object],
    documents: Iterator[Document] | None = None,
    count: int = DOCUMENTS,
    after: Callable[[], object] = lambda: None,
    dead: int = 0,
) -> Verdict:
    """Sends some, breaks something while the others are sent, and judges once all is over.

    The fault is this thread's: the kernel kills a server with the thread that started it.
    """
    coming = documents or versions(name, count)
    expected = Expected()
    begun = threading.Event()

    def send() -> None:
        with closing(Producer(system.settings, expected)) as producer:
            for n, document in enumerate(coming):
                producer.send(document)
                if n == count // 3:
                    begun.set()
                time.sleep(0.005)
            producer.settle()

    with ThreadPoolExecutor(1) as sending:
        sent = sending.submit(send)
        assert begun.wait(300)
        fault()
        sent.result()
    seconds = system.recovered()
    system.drained()
    after()
    system.everything.last |= expected.last
    verdict = judge(system.settings, expected.last, system.everything.last)
    ROWS.append(Row(name, expected.sent, verdict, seconds))
    assert verdict.dead == dead, "an outage is no reason for a dead letter"
    return verdict


@pytest.mark.parametrize("name", ["ingest", "generation", "selection"])
def test_a_replica_is_killed(system: System, name: str) -> None:
    assert run(system, f"SIGKILL of {name}", lambda: system.kill_replica(name)).right


def test_the_controller_is_killed(system: System) -> None:
    fault = lambda: system.kill_process("ServeController")  # noqa: E731
    assert run(system, "SIGKILL of the Serve controller", fault).right


@pytest.mark.parametrize("away_s", [0.0, AWAY_S])
def test_redis_dies(system: System, away_s: float) -> None:
    name = "SIGKILL of Redis, with AOF" if not away_s else "Redis away for a minute"
    assert run(system, name, lambda: system.kill_server(system.redis, away_s)).right


def test_redis_hangs(system: System) -> None:
    def hang() -> None:
        assert system.redis.pid is not None
        os.kill(system.redis.pid, signal.SIGSTOP)
        time.sleep(15)
        os.kill(system.redis.pid, signal.SIGCONT)

    assert run(system, "Redis hangs for 15 s", hang).right


def test_redis_is_full(system: System) -> None:
    def fill() -> None:
        import redis

        with redis.Redis.from_url(system.redis.url) as client:
            client.config_set("maxmemory", "1mb")
            time.sleep(5)
            client.config_set("maxmemory", "0")

    assert run(system, "Redis full for 5 s", fill).right


def test_redis_is_slow(system: System) -> None:
    def slow() -> None:
        system.proxy.delay_s = 0.5
        time.sleep(10)
        system.proxy.delay_s = 0.0

    assert run(system, "Redis slow (500 ms) for 10 s", slow).right


@pytest.mark.parametrize("away_s", [0.0, AWAY_S])
def test_kafka_dies(system: System, away_s: float) -> None:
    name = "SIGKILL of Kafka" if not away_s else "Kafka away for a minute"
    assert run(system, name, lambda: system.kill_server(system.kafka, away_s)).right


def test_the_group_never_rests(system: System) -> None:
    def storm() -> None:
        settings, group = system.settings, IngestConfig().group
        for _ in range(10):
            # It takes partitions, reads and commits nothing, and leaves.
            member = Source(settings, group, [settings.topic_documents, settings.topic_feedback])
            end = time.monotonic() + 2
            while time.monotonic() < end:
                member.poll(0.2, 10)
            member.close()

    assert run(system, "ten members join and leave", storm).right


def test_a_document_kills_its_process(system: System) -> None:
    def documents() -> Iterator[Document]:
        for n, document in enumerate(versions("poison", DOCUMENTS)):
            yield document
            if n == DOCUMENTS // 2:
                yield Document(id="poison", text=f"CD28 {deadly.MARKER}.", lang="en", types=("protein",))

    verdict = run(system, "a document kills generation", lambda: None, documents(), DOCUMENTS + 1, dead=1)
    assert verdict.right
    reasons = [letter.reason for letter in DeadLetters(system.settings).letters(Filter())]
    assert reasons == ["crashed"]


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat (librdkafka) is not installed")
def test_other_producers_codecs(system: System) -> None:
    expected = Expected()
    for codec in CODECS:
        kcat(system, list(versions(f"codec-{codec}", 60)), expected, "-z", codec)
    judged(system, "batches in gzip, snappy, lz4, zstd, by kcat", expected)


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat (librdkafka) is not installed")
def test_amendments_sent_by_kcat(system: System) -> None:
    """A long text and its short correction right behind; and a text that comes back."""
    expected = Expected()
    long = " ".join(f"CD{n} binds." for n in range(400))
    sent = []
    for n in range(20):
        sent += [(f"order-{n}", f"{long} {n}"), (f"order-{n}", f"CD28 {n}.")]
        sent += [(f"aba-{n}", f"A CD1 {n}."), (f"aba-{n}", f"B CD2 {n}."), (f"aba-{n}", f"A CD1 {n}.")]
    kcat(system, [Document(id=id_, text=text, lang="en", types=("protein",)) for id_, text in sent], expected)
    judged(system, "order and A-B-A, by kcat", expected)


def test_a_batch_is_corrupt(system: System) -> None:
    victim = Document(id="victim", text="CD28 of the victim.", lang="en", types=("protein",))

    def spoil() -> None:
        """The one record of a batch of its own is changed on the broker's disk before anybody reads it."""
        topic = system.settings.topic_documents
        log = system.kafka.data / "logs"
        stopped = system.command.replicas("ingest")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            with closing(Producer(system.settings, Expected())) as producer:
                producer.send(victim)
                producer.settle()
            for partition in range(3):
                file = next((log / f"{topic}-{partition}").glob("*.log"))
                found = [n for n, batch in enumerate(batches(file.read_bytes())) if b'"id":"victim"' in batch]
                if found:
                    change_batches(system.kafka, topic, damage, found[0], partition=partition)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    assert run(system, "a corrupt batch", spoil).right
    letters = list(DeadLetters(system.settings).letters(Filter(reasons=("unreadable",))))
    assert [b'"id":"victim"' in (letter.record.value or b"") for letter in letters] == [True]


def test_redis_forgets(system: System) -> None:
    """Without an append-only file a new server is empty: `biobracket rebuild` fills it."""

    def forget() -> None:
        assert system.redis.pid is not None
        os.kill(system.redis.pid, signal.SIGKILL)
        system.redis.stop()
        shutil.rmtree(system.redis.data / "appendonlydir")
        system.redis.durable = False
        system.redis.start()

    name = "SIGKILL of Redis, without AOF, then `rebuild`"
    verdict = run(system, name, forget, after=lambda: rebuild(system.settings))
    assert verdict.right


def test_the_node_is_killed(system: System) -> None:
    def kill() -> None:
        system.kill_process("raylet/raylet")
        system.restart()

    assert run(system, "SIGKILL of the Ray node, then a restart", kill).right


def test_a_soak(system: System) -> None:
    chosen = random.Random(7)
    over = threading.Event()
    kills: list[str] = []

    def documents() -> Iterator[Document]:
        yield from versions("soak", SOAK)
        over.set()

    def kill_now_and_then() -> None:
        system.redis.durable = True
        system.kill_server(system.redis)  # durable from here on
        rebuild(system.settings)
        while not over.wait(chosen.uniform(10, 20)):
            name = chosen.choice(["ingest", "generation", "selection", "pipeline", "redis", "kafka"])
            kills.append(name)
            if name in ("redis", "kafka"):
                system.kill_server(system.redis if name == "redis" else system.kafka)
            else:
                system.kill_replica(name)

    verdict = run(system, "a soak with random kills", kill_now_and_then, documents(), SOAK)
    assert kills
    assert verdict.right


def kcat(system: System, documents: list[Document], expected: Expected, *options: str) -> None:
    """Sends documents as another client does."""
    lines = [f"{document.id}\t{json.dumps(document.model_dump(exclude_defaults=True))}" for document in documents]
    subprocess.run(
        ["kcat", "-P", "-b", system.kafka.url, "-t", system.settings.topic_documents, "-K", "\t", *options],
        input="\n".join(lines).encode(),
        check=True,
        timeout=120,
    )
    for document in documents:
        expected.add(document)


def judged(system: System, name: str, expected: Expected) -> None:
    seconds = system.recovered()
    system.drained()
    system.everything.last |= expected.last
    verdict = judge(system.settings, expected.last, system.everything.last)
    ROWS.append(Row(name, expected.sent, verdict, seconds))
    assert verdict.right
    assert verdict.dead == 0
