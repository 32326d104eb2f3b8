"""The whole product on Apache Kafka and Redis, with handles to break each part of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from services.ingest.config import IngestConfig
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Lag
from shared.backends.streams.topics import ensure_topics
from shared.errors import StoreError, StreamError
from shared.messages import Document
from shared.settings import Settings
from tests.faults.workload import Expected, Producer
from tests.support import deadly, kafka, redis_server
from tests.support.commands import Command
from tests.support.kafka import Kafka
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.tiny import make_tiny_model

PATIENCE_S = 300.0


class System:
    """Kafka, Redis behind a proxy, and `biobracket up` joined to both. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cleanup = ExitStack()
        self._model = make_tiny_model(folder / "model")
        self._starts = 0
        self._probes = 0
        self._killed: list[tuple[str, int]] = []
        self.kafka = Kafka(folder / "kafka")
        self.redis = RedisServer(folder / "redis")
        self.everything = Expected()
        self.proxy: Proxy
        self.command: Command
        self.settings: Settings

    def __enter__(self) -> System:
        for server in (self.kafka, self.redis):
            server.start()
            # At its address for good: clients come back to it.
            server._fixed = True
            self._cleanup.callback(server.stop)
        self.proxy = self._cleanup.enter_context(Proxy(self.redis.port))
        self.settings = Settings(kafka=self.kafka.url, redis=SecretStr(self.redis.url), partitions=3)
        ensure_topics(self.settings)
        self.start()
        self._cleanup.callback(self._kill)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    # -- the application -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """`biobracket up`, with a generation service that some texts kill."""
        self._starts += 1
        folder = self._folder / f"up-{self._starts}"
        folder.mkdir()
        behind = self.redis.url.replace(f":{self.redis.port}/", f":{self.proxy.port}/")
        given = {
            "BASE_MODEL": str(self._model),
            "ADAPTER": "",
            "GENERATION_THREADS": "1",
            "KAFKA": self.kafka.url,
            "REDIS": behind,
            "INGEST_MAX_REPLICAS": "2",
            "INGEST_LAG_PER_REPLICA": "150",
            "INGEST_UPSCALE_DELAY_S": "2",
            "INGEST_DOWNSCALE_DELAY_S": "20",
            "INGEST_BACKOFF_MAX_S": "2",
        }
        self.command = Command(folder, given, "up", site=deadly.FOLDER)
        self.command.wait_until_up("Ctrl-C")

    def restart(self) -> None:
        """What Kubernetes does when the node of Ray is gone."""
        self._kill()
        self.start()

    def _kill(self) -> None:
        for process in [*self.command.descendants(), psutil.Process(self.command.process.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.command.process.wait()

    def kill_replica(self, name: str) -> None:
        """SIGKILL for a replica, once there is one."""
        self.until(lambda: bool(self.command.replicas(name)))
        pid = self.command.replicas(name)[0]
        os.kill(pid, signal.SIGKILL)
        self._killed.append((name, pid))

    def replaced(self) -> None:
        """Waits until other processes are in the places of the replicas that were killed."""
        for name, pid in self._killed:
            self.until(lambda n=name, p=pid: bool(set(self.command.replicas(n)) - {p}))  # type: ignore[misc]
            assert pid not in self.command.replicas(name)
        self._killed.clear()

    def kill_process(self, name: str) -> None:
        """SIGKILL for the process of Ray whose command line says so."""
        found = [p for p in self.command.descendants() if name in " ".join(_command_line(p))]
        assert found, name
        found[0].kill()

    # -- the servers ---------------------------------------------------------------------------------------------------

    def kill_server(self, server: Kafka | RedisServer, away_s: float = 0.0) -> None:
        """SIGKILL, some time without it, and a start on the same data and address."""
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        time.sleep(away_s)
        server.start()

    # -- what happens --------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], pause_s: float = 0.2) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.command.errors.read_text()[-2000:]
            time.sleep(pause_s)

    def recovered(self) -> float:
        """Seconds until a document that is sent now is in Redis."""
        self._probes += 1
        probe = Document(id=f"probe-{self._probes}", text=f"CD28 {self._probes}.", lang="en", types=("protein",))
        start = time.monotonic()
        with closing(Producer(self.settings, self.everything)) as producer:
            producer.send(probe)
            producer.settle()
        with closing(ResultStore.from_settings(self.settings)) as store:
            self.until(lambda: _there(store, probe.id))
        return time.monotonic() - start

    def busy(self) -> bool:
        """Whether there are records that the group has not committed."""
        with closing(Lag(self.settings, IngestConfig().group, self.settings.topic_documents)) as lag:
            return bool(_lag(lag))

    def results(self) -> int:
        """How many documents have one; 0 while Redis is away."""
        with suppress(StoreError), closing(ResultStore.from_settings(self.settings)) as store:
            return store.counts()["documents"]
        return 0

    def drained(self) -> None:
        """Waits until the group has committed everything that there is."""
        with closing(Lag(self.settings, IngestConfig().group, self.settings.topic_documents)) as lag:
            self.until(lambda: _lag(lag) == 0)


@contextmanager
def started(folder: Path) -> Iterator[System]:
    """A system for the tests of a module, which are skipped where Kafka or Redis cannot be had."""
    try:
        made = System(folder)
    except (kafka.Unavailable, redis_server.Unavailable) as missing:
        pytest.skip(str(missing))
    with made as running:
        yield running


def _there(store: ResultStore, id_: str) -> bool:
    with suppress(StoreError):
        return store.get(id_) is not None
    return False


def _lag(lag: Lag) -> int | None:
    with suppress(StreamError):
        return lag.read()
    return None


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []
