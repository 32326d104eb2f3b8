"""A row of the table: documents, a fault that strikes while they are under way, and what became of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from benchmarks.hardware import hardware
from shared.messages import Document
from tests.faults.system import System
from tests.faults.verdict import Verdict, judge
from tests.faults.workload import Expected, Producer, versions

DOCUMENTS = 240
KCAT = shutil.which("kcat")
HEAD = ["fault", "documents", "lost", "doubled", "stale", "dead letters", "sent again", "seconds to recover"]


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


ROWS: list[Row] = []


def table(rows: Iterable[Row]) -> str:
    """The machine and the rows, in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows))]
    return f"{hardware()}\n\n" + "\n".join(lines) + "\n"


def run(
    system: System,
    name: str,
    fault: Callable[[], object],
    documents: Iterator[Document] | None = None,
    count: int = DOCUMENTS,
    after: Callable[[], object] = lambda: None,
    also: Sequence[Document] = (),
    dead: int = 0,
) -> Verdict:
    """Sends some, breaks something while there is work and more comes, and judges once all is over.

    The fault is this thread's: the kernel kills a server with the thread that started it. ``also``: documents that the
    fault sends. Seconds to recover run from the end of the fault.
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
        system.until(system.busy, pause_s=0.02)
        fault()
        seconds = system.recovered()
        sent.result()
    for document in also:
        expected.add(document)
    system.drained()
    system.replaced()
    after()
    return judged(system, name, expected, seconds, dead)


def judged(system: System, name: str, expected: Expected, seconds: float | None = None, dead: int = 0) -> Verdict:
    """Adds the row, once everything that was sent is done."""
    if seconds is None:
        seconds = system.recovered()
        system.drained()
    system.everything.last |= expected.last
    verdict = judge(system.settings, expected.last, system.everything.last, published(system) if KCAT else None)
    ROWS.append(Row(name, expected.sent, verdict, seconds))
    assert verdict.right
    assert verdict.dead == dead, "an outage is no reason for a dead letter"
    return verdict


def kcat(system: System, documents: Sequence[Document], expected: Expected | None = None, *options: str) -> None:
    """Sends documents as another client (librdkafka) does."""
    lines = [f"{document.id}\t{json.dumps(document.model_dump(exclude_defaults=True))}" for document in documents]
    _kcat(system, "-P", "-t", system.settings.topic_documents, "-K", "\t", *options, sent="\n".join(lines).encode())
    for document in documents:
        if expected is not None:
            expected.add(document)


def published(system: System) -> list[bytes]:
    """The records on the topic of entities as another client reads them, in the order of each partition."""
    topic = system.settings.topic_entities
    return _kcat(system, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%s\n").splitlines()


def _kcat(system: System, *arguments: str, sent: bytes | None = None) -> bytes:
    done = subprocess.run(
        ["kcat", "-b", system.kafka.url, *arguments], input=sent, capture_output=True, check=True, timeout=120
    )
    return done.stdout
