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
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis
from kafka import KafkaProducer

from services.dead_letters import DeadLetters, Filter
from services.ingest.config import IngestConfig
from services.rebuild import rebuild
from shared.backends.feedback_store import FeedbackStore
from shared.backends.result_store import ResultStore
from shared.backends.streams.source import Source
from shared.messages import Document
from tests.faults.rows import KCAT, ROWS, judged, kcat, run, table
from tests.faults.system import System, started
from tests.faults.workload import Expected, Producer, amendments, versions
from tests.support import deadly
from tests.support.kafka import batches, change_batches, damage

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SOAK = int(os.environ.get("BIOBRACKET_FAULTS_SOAK", "20000"))
FEWEST_KILLS = 5
BETWEEN_KILLS = 300  # results
AWAY_S = 60.0
CODECS = ("gzip", "snappy", "lz4", "zstd")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with started(tmp_path_factory.mktemp("faults")) as running:
        yield running
    print("\n" + table(ROWS))
    if file := os.environ.get("BIOBRACKET_FAULTS_TABLE"):
        Path(file).write_text(table(ROWS), encoding="utf-8")


without_kcat = pytest.mark.skipif(KCAT is None, reason="kcat (librdkafka) is not installed")


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
    refused: list[int] = []

    def fill() -> None:
        with redis.Redis.from_url(system.redis.url) as client:
            before = _refused(client)
            client.config_set("maxmemory", "1mb")
            time.sleep(5)
            client.config_set("maxmemory", "0")
            refused.append(_refused(client) - before)

    assert run(system, "Redis full for 5 s", fill).right
    assert refused[0] > 0, "nothing was written while it was full"


def _refused(client: redis.Redis) -> int:
    """Writes that Redis refused for want of memory."""
    found = client.info("errorstats").get("errorstat_OOM", {})
    return int(found.get("count", 0))


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


@without_kcat
def test_a_document_kills_its_process(system: System) -> None:
    poison = Document(id="poison", text=f"CD28 {deadly.MARKER}.", lang="en", types=("protein",))
    assert run(
        system, "a document kills generation, by kcat", lambda: kcat(system, [poison]), also=[poison], dead=1
    ).right
    reasons = [letter.reason for letter in DeadLetters(system.settings).letters(Filter())]
    assert reasons == ["crashed"]


@without_kcat
def test_other_producers_codecs(system: System) -> None:
    expected = Expected()
    for codec in CODECS:
        kcat(system, list(versions(f"codec-{codec}", 60)), expected, "-z", codec)
    judged(system, "batches in gzip, snappy, lz4, zstd, by kcat", expected)


@without_kcat
def test_amendments_sent_by_kcat(system: System) -> None:
    expected = Expected()
    kcat(system, list(amendments(20)), expected)
    judged(system, "order and A-B-A, by kcat", expected)


def test_times_that_are_none(system: System) -> None:
    """Time stamps of -1, absent and in microseconds, on documents and on feedback, sent to the running product."""
    expected = Expected()
    documents = list(versions("times", 60))
    producer = KafkaProducer(bootstrap_servers=system.kafka.url)
    for n, document in enumerate(documents):
        given = (-1, None, time.time_ns() // 1000)[n % 3]
        producer.send(
            system.settings.topic_documents,
            key=document.id.encode(),
            value=document.model_dump_json().encode(),
            timestamp_ms=given,
        ).get(60)
        opinion = {"id": f"o-{n}", "text": "CD28", "start": 0, "end": 4, "type": "protein", "accepted": True}
        producer.send(system.settings.topic_feedback, json.dumps(opinion).encode(), timestamp_ms=given).get(60)
        expected.add(document)
    producer.close()
    judged(system, "time stamps of -1, none, microseconds", expected)
    with closing(FeedbackStore.from_settings(system.settings)) as store:
        system.until(lambda: {f"o-{n}" for n in range(60)} <= {one.id for one in store.page(limit=1000).feedback})


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
    assert run(system, name, forget, after=lambda: rebuild(system.settings)).right


def test_the_node_is_killed(system: System) -> None:
    def kill() -> None:
        system.kill_process("raylet/raylet")
        system.restart()

    assert run(system, "SIGKILL of the Ray node, then a restart", kill).right


@pytest.mark.timeout(2400)  # two cores without VNNI do twenty documents a second beside other work
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
        while len(kills) < FEWEST_KILLS or not over.is_set() or system.busy():
            before = system.results()
            over.wait(1)
            time.sleep(chosen.uniform(8, 15))
            # A slow machine is killed less often, else it would do nothing but start.
            system.until(lambda done=before + BETWEEN_KILLS: system.results() >= done or not system.busy())  # type: ignore[misc]
            name = chosen.choice(["ingest", "generation", "selection", "pipeline", "redis", "kafka"])
            kills.append(name)
            if name in ("redis", "kafka"):
                system.kill_server(system.redis if name == "redis" else system.kafka)
            else:
                system.kill_replica(name)

    assert run(system, "a soak with random kills", kill_now_and_then, documents(), SOAK).right


def test_a_batch_is_corrupt(system: System) -> None:
    """The last row: a broker that recovers from a kill cuts its own log at such a batch."""
    victims: list[Document] = []

    def spoil() -> None:
        """The one record of a batch of its own is changed on the broker's disk before anybody reads it."""
        stopped = system.command.replicas("ingest")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            # A replica that was just starting may have read it: then another one is sent.
            while not victims or _has_result(system, victims[-1]):
                name = f"victim-{len(victims)}"
                victims.append(Document(id=name, text=f"CD28 of the {name}.", lang="en", types=("protein",)))
                with closing(Producer(system.settings, system.everything)) as producer:
                    producer.send(victims[-1])
                    producer.settle()
                time.sleep(2)
            _damage(system, victims[-1])
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    assert run(system, "a corrupt batch", spoil, also=victims, dead=1).right
    letters = list(DeadLetters(system.settings).letters(Filter(reasons=("unreadable",))))
    said = json.dumps(victims[-1].id).encode()
    assert [said in (letter.record.value or b"") for letter in letters] == [True]


def _has_result(system: System, document: Document) -> bool:
    with closing(ResultStore.from_settings(system.settings)) as store:
        return store.get(document.id) is not None


def _damage(system: System, document: Document) -> None:
    topic, said = system.settings.topic_documents, json.dumps(document.id).encode()
    for partition in range(3):
        file = next((system.kafka.data / "logs" / f"{topic}-{partition}").glob("*.log"))
        for n, batch in enumerate(batches(file.read_bytes())):
            if said in batch:
                change_batches(system.kafka, topic, damage, n, partition=partition)
                return
