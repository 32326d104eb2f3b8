"""Asks for erasures: of a document by a record of its own, and at once of what the store has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from shared.backends.feedback_store import FeedbackStore
from shared.backends.records import place_headers
from shared.backends.result_store import ResultStore
from shared.backends.streams.sink import Sink
from shared.errors import StreamError
from shared.messages import Erasure, SourcePosition
from shared.settings import Settings

_AT_ONCE = 1000
_WRITERS = 8
_TRIES = 5


class Eraser:
    """Erases documents.

    A record on the topic of documents, a key alone, gives the erasure its place among the versions, and makes ingest
    carry it out however this process ends: ingest also tells the topic of entities. The store is cleared here already,
    at that same place, so that whoever asks need not wait for ingest. Errors: StreamError, StoreError; then the same
    may be asked again. Thread-safe.
    """

    def __init__(self, settings: Settings, store: ResultStore, feedback: FeedbackStore) -> None:
        self._settings = settings
        self._store = store
        self._feedback = feedback
        self._opening = threading.Lock()
        self._opened: Sink | None = None

    def erase(self, documents: Iterable[tuple[str, SourcePosition | None]]) -> int:
        """Erases each document with all that came before this; how many that were asked for.

        With a position only what came up to there, so that a later version stays. One that is not there is erased too.
        """
        waiting = iter(documents)
        count = 0
        with ThreadPoolExecutor(_WRITERS) as writers:
            while some := list(islice(waiting, _AT_ONCE)):
                sent = [(id_, place, self._send(id_, place)) for id_, place in some]
                list(writers.map(self._clear, sent))
                count += len(some)
        return count

    def close(self) -> None:
        """Lets go of the broker; leaves the stores open."""
        if self._opened is not None:
            self._opened.close()

    def _send(self, document_id: str, place: SourcePosition | None) -> Future[SourcePosition | None]:
        headers = () if place is None else place_headers(place)
        return self._sink().send(self._settings.topic_documents, document_id.encode(), None, headers)

    def _sink(self) -> Sink:
        """The producer, from the first erasure on: who never erases needs no broker."""
        with self._opening:
            if self._opened is None:
                self._opened = Sink(self._settings)
            return self._opened

    def _clear(self, sent: tuple[str, SourcePosition | None, Future[SourcePosition | None]]) -> None:
        document_id, place, future = sent
        position = future.result()
        for _ in range(_TRIES):
            if position is not None:
                break
            position = self._send(document_id, place).result()  # it was acknowledged, but not where it stands
        if position is None:
            raise StreamError("kafka: the broker does not tell where a record stands; try again", retryable=True)
        self._store.erase(Erasure(document_id=document_id, source=place or position))
        self._feedback.erase(document_id, position.timestamp_ms / 1000 or time.time())
