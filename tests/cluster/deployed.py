"""The product on a cluster, Kafka and Redis beside it, and what the tests see of them from this machine."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from benchmarks.hardware import hardware
from services.ingest.config import IngestConfig
from services.query.auth import key_file
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Lag, Scan
from shared.backends.streams.topics import ensure_topics
from shared.errors import StoreError, StreamError
from shared.messages import Document, Extraction
from tests.cluster import beside, models, overlay
from tests.cluster.kubernetes import PATIENCE_S, Cluster, Missing
from tests.cluster.load import Callers, Calls, Stream
from tests.faults.verdict import Verdict, judge
from tests.faults.workload import Expected, Producer, versions
from tests.support import kafka, redis_server
from tests.support.manifests import ROOT

_PER_SECOND = 2.0
# Before and after what happens.
_LEAD_S, _TAIL_S = 10.0, 10.0
HEAD = [
    "what happened", "documents", "lost", "doubled", "stale", "dead letters",
    "calls", "errors", "slowest (s)", "seconds",
]  # fmt: skip


@dataclass
class Row:
    """``seconds``: from the beginning of what happened until a document sent after its end was in Redis."""

    name: str
    documents: int
    verdict: Verdict
    calls: Calls | None
    seconds: float

    def cells(self) -> list[str]:
        found, calls = self.verdict, self.calls
        counts = (self.documents, found.lost, found.doubled, found.stale, found.dead)
        told = ["", "", ""]
        if calls is not None:
            errors = ", ".join(f"{n} {what}" for what, n in sorted(calls.errors.items())) or "0"
            told = [str(calls.answered.total() + calls.errors.total() + calls.busy), errors, f"{calls.slowest_s:.1f}"]
        return [self.name, *map(str, counts), *told, f"{self.seconds:.0f}"]


ROWS: list[Row] = []


def table(rows: Iterable[Row]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows))]
    return f"{hardware()}\n\n" + "\n".join(lines) + "\n"


class Deployed:
    """Of one session; see :func:`deployed`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cluster = Cluster(overlay.NAMESPACE)
        self.kafka, self.redis = beside.servers(folder)
        self.models = models.make_models(folder / "models")
        self.everything = Expected()
        self.key = ""
        self._numbers = count()

    def prepare(self) -> None:
        """An empty namespace with API keys and the tiny models, empty servers."""
        cluster = self.cluster
        cluster.kubectl("delete", "namespace", overlay.NAMESPACE, "--ignore-not-found", "--wait", timeout_s=PATIENCE_S)
        volumes = json.loads(cluster.kubectl("get", "pv", "-o", "json"))["items"]
        for volume in volumes:  # what an earlier run has left
            if volume["status"].get("phase") == "Released":
                cluster.kubectl("patch", "pv", volume["metadata"]["name"], "-p", '{"spec": {"claimRef": null}}')
        self.kafka.start()
        self.redis.start()
        self.settings = beside.settings(self.kafka, self.redis)
        ensure_topics(self.settings)
        namespace = yaml.safe_load((ROOT / "k8s" / "base" / "namespace.yaml").read_text())
        cluster.apply([namespace])
        cluster.apply([self._keys(), models.as_config_map(self.models, "tiny", overlay.NAMESPACE)])

    def _keys(self) -> dict[str, Any]:
        file = self.folder / "api-keys.json"
        self.key, _ = key_file.create(file, "tests", ("read", "extract", "feedback"), 1, datetime.now(UTC))
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "biobracket-keys", "namespace": overlay.NAMESPACE},
            "data": {file.name: base64.b64encode(file.read_bytes()).decode()},
        }

    # -- the application -----------------------------------------------------------------------------------------------

    def use(self, adapter: str, **given: str) -> None:
        """Applies the test overlay with the tiny model and one of its adapters."""
        folder = self.folder / f"overlay-{next(self._numbers)}"
        self.cluster.apply_folder(overlay.write(folder, self.models, adapter, **given))

    def ready(self) -> bool:
        return self.cluster.service_ready(overlay.NAME)

    def clusters(self) -> list[str]:
        """Names of the Ray clusters."""
        return [each["metadata"]["name"] for each in self.cluster.get("rayclusters").get("items", [])]

    def settled(self) -> float:
        """Waits until one Ray cluster serves, and no other is there; the seconds."""
        return self.cluster.until(
            lambda: self.ready() and len(self.clusters()) == 1 and self._pending() is None, "one cluster, ready"
        )

    def _pending(self) -> str | None:
        status = self.cluster.get("rayservice", overlay.NAME).get("status", {})
        return status.get("pendingServiceStatus", {}).get("rayClusterName") or None

    def address(self) -> str:
        """Of HTTP, by the Service's own address, which nodes route."""
        service = self.cluster.get("service", f"{overlay.NAME}-serve-svc")
        return f"http://{service['spec']['clusterIP']}:8000"

    def head(self) -> dict[str, Any]:
        (pod,) = self.cluster.pods(node_type="head")
        return pod

    # -- documents -----------------------------------------------------------------------------------------------------

    def drained(self) -> None:
        """Waits until the group has committed everything that there is."""
        with closing(Lag(self.settings, IngestConfig().group, self.settings.topic_documents)) as lag:
            self.cluster.until(lambda: _lag(lag) == 0, "the group has committed everything")

    def recovered(self) -> None:
        """Waits until a document that is sent now is in Redis."""
        probe = Document(id=f"probe-{next(self._numbers)}", text="CD28 binds.", lang="en", types=("protein",))
        with closing(Producer(self.settings, self.everything)) as producer:
            producer.send(probe)
            producer.settle()
        with closing(ResultStore.from_settings(self.settings)) as store:
            self.cluster.until(lambda: _there(store, probe.id), "a document that is sent now is in Redis")

    def published(self, ids: Iterable[str]) -> list[Extraction]:
        """All that came out for these documents."""
        wanted = set(ids)
        with closing(Scan(self.settings, self.settings.topic_entities)) as scan:
            values = [record.value or b"" for records in scan.read() for record in records]
        found = [Extraction.model_validate_json(value) for value in values]
        return [each for each in found if each.document_id in wanted]

    def extract(self, document: Document) -> Extraction:
        body = {"id": document.id, "text": document.text, "lang": document.lang, "types": document.types}
        headers = {"Authorization": f"Bearer {self.key}"}
        response = httpx.post(f"{self.address()}/v1/extract", json=body, headers=headers, timeout=PATIENCE_S)
        assert response.status_code == 200, response.text
        return Extraction.model_validate_json(response.content)

    def forget_lines(self) -> None:
        """Takes the cached segments out of Redis: they are computed anew."""
        with redis.Redis.from_url(self.redis.url) as client:
            for key in client.scan_iter("bb:s:*"):
                client.delete(key)

    # -- proofs --------------------------------------------------------------------------------------------------------

    def proof(self, name: str, act: Callable[[], object], *, per_second: float = _PER_SECOND) -> tuple[Row, Expected]:
        """Documents and calls while ``act`` happens, and what became of them; they go on until it is over."""
        documents = versions(f"{name}-{next(self._numbers)}".replace(" ", "-"), 1_000_000)
        address = self.address()
        with (
            Stream(self.settings, documents, per_second) as stream,
            Callers(lambda: address, self.key) as callers,
        ):
            time.sleep(_LEAD_S)
            start = time.monotonic()
            act()
            self.recovered()
            seconds = time.monotonic() - start
            time.sleep(_TAIL_S)
        self.drained()
        self.everything.last |= stream.expected.last
        verdict = judge(self.settings, stream.expected.last, self.everything.last)
        row = Row(name, stream.expected.sent, verdict, callers.calls, seconds)
        ROWS.append(row)
        print("\n" + " | ".join(row.cells()), flush=True)
        assert verdict.right, row
        assert verdict.dead == 0, "an outage is no reason for a dead letter"
        return row, stream.expected


@contextmanager
def deployed(folder: Path) -> Iterator[Deployed]:
    """Everything beside the cluster, running; skipped where something is missing, but in CI."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl")
    try:
        made = Deployed(folder)
    except (kafka.Unavailable, redis_server.Unavailable, Missing) as missing:
        pytest.fail(str(missing))
    try:
        made.prepare()
        yield made
    finally:
        if ROWS:
            print("\n" + table(ROWS))
        if file := os.environ.get("BIOBRACKET_CLUSTER_TABLE"):
            Path(file).write_text(table(ROWS), encoding="utf-8")
        made.cluster.kubectl("delete", "rayservice", "-n", overlay.NAMESPACE, "--all", "--ignore-not-found")
        with suppress(AssertionError, subprocess.TimeoutExpired):
            made.cluster.kubectl("delete", "namespace", overlay.NAMESPACE, "--wait", timeout_s=PATIENCE_S)
        made.kafka.stop()
        made.redis.stop()


def _lag(lag: Lag) -> int | None:
    with suppress(StreamError):
        return lag.read()
    return None


def _there(store: ResultStore, id_: str) -> bool:
    with suppress(StoreError):
        return store.get(id_) is not None
    return False
