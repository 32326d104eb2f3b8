"""What is under way while something happens: documents by Kafka, and callers over HTTP; and what became of both."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Self

import httpx

from shared.messages import Document
from shared.settings import Settings
from tests.faults.workload import Expected, Producer

_PAUSE_S = 0.5
_CALLERS = 2
# Longer than a cluster takes to come back: who waits is not refused.
_TIMEOUT_S = 120.0


@dataclass
class Calls:
    """Answers by what they were: a revision, `busy` (503 with Retry-After), or what went wrong."""

    answered: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def add(self, response: httpx.Response | Exception, seconds: float) -> None:
        self.slowest_s = max(self.slowest_s, seconds)
        if isinstance(response, Exception):
            self.errors[type(response).__name__] += 1
        elif response.status_code == 200:
            self.answered[response.json()["model_revision"]] += 1
        elif response.status_code == 503 and "Retry-After" in response.headers:
            self.busy += 1
        else:
            self.errors[f"HTTP {response.status_code}"] += 1


class Callers:
    """Ask for entities, one call after the other, each by a connection of its own. A context manager."""

    def __init__(self, address: Callable[[], str], key: str) -> None:
        self.calls = Calls()
        self._address = address
        self._headers = {"Authorization": f"Bearer {key}"}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(n,), daemon=True) for n in range(_CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self, caller: int) -> None:
        n = 0
        while not self._over.is_set():
            n += 1
            start = time.monotonic()
            body = {"text": f"CD{n} of caller {caller}.", "lang": "en", "types": ["protein"]}
            try:
                url = f"{self._address()}/v1/extract"
                got: httpx.Response | Exception = httpx.post(url, json=body, headers=self._headers, timeout=_TIMEOUT_S)
            except httpx.HTTPError as error:
                got = error
            with self._lock:
                self.calls.add(got, time.monotonic() - start)
            self._over.wait(_PAUSE_S)


class Stream:
    """Sends documents at a steady pace until :meth:`end`. A context manager."""

    def __init__(self, settings: Settings, documents: Iterable[Document], per_second: float) -> None:
        self.expected = Expected()
        self._settings = settings
        self._documents = documents
        self._pause_s = 1 / per_second
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._sending = self._pool.submit(self._send)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self._sending.result()

    def _send(self) -> None:
        with closing(Producer(self._settings, self.expected)) as producer:
            for document in self._documents:
                producer.send(document)
                if self._over.wait(self._pause_s):
                    break
            producer.settle()
