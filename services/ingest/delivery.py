"""What leaves ingest: results and feedback to their stores, results to the entities topic, and dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from services.audit_trail import Action, AuditTrail
from services.ingest.admission import admit_erasure, admit_feedback
from shared.backends.records import (
    Headers,
    Record,
    dead_letter_headers,
    erases,
    erasure_headers,
    own_headers,
    position_of,
    replayed,
)
from shared.errors import DocumentError, StoreError
from shared.messages import Document, Erasure, Extraction
from shared.runtime.logs import get_logger
from shared.runtime.metrics import ERASURES, FEEDBACK, STAGE_SECONDS, SUPERSEDED, UNKNOWN_FIELDS, Observe
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.backends.feedback_store import FeedbackStore
    from shared.backends.result_store import ResultStore
    from shared.backends.streams.sink import Sink

T = TypeVar("T")

# Half of what a record may have beside its value, see shared.backends.streams.client; the other half is for the reason.
_HEADERS_BYTES = 32 * 1024

# The header that tells results apart, see Extraction.key.
_KEY = "key"
# The standard asks for no more of either.
_TRACE_BYTES = 512

logger = get_logger(__name__)


class Persist(Protocol):
    """Tries work of a stage until it succeeds; DocumentError where the document is to blame."""

    def __call__(self, stage: str, work: Callable[[], Awaitable[T]]) -> Awaitable[T]: ...


class Delivery:
    """The last version of a document is what the store serves and the last record of its key on the entities topic.

    That holds in whatever order its versions come, on however many replicas, also after crashes and replays: see
    :meth:`shared.backends.result_store.ResultStore.put`. With a ``trail`` each record has an entry in it before it is
    done; one that is read again may have two.
    """

    def __init__(
        self,
        *,
        store: ResultStore,
        feedback: FeedbackStore,
        sink: Sink,
        settings: Settings,
        persist: Persist,
        observe: Observe,
        trail: AuditTrail | None = None,
    ) -> None:
        self._store = store
        self._feedback = feedback
        self._trail = trail
        self._sink = sink
        self._settings = settings
        self._persist = persist
        self._observe = observe

    async def deliver(self, record: Record, extraction: Extraction) -> None:
        """Stores and publishes the result of a record, unless a later version of the document is there.

        Once begun it has to end, even if the partition goes to another consumer: a record on its way could else come
        last. DocumentError where the result is too large for the topic.
        """
        start = time.perf_counter()
        write = await self._persist("store", lambda: asyncio.to_thread(self._store.put, extraction))
        self._observe(STAGE_SECONDS, time.perf_counter() - start, {"stage": "store"})
        if write.outcome in ("superseded", "erased"):
            self._observe(SUPERSEDED, 1)
        await self._publish_all(extraction, write.unpublished, passed_on(record))
        await self._note(record, extraction.document_id, "stored" if write.outcome == "written" else write.outcome)

    async def erase(self, record: Record) -> None:
        """Erases a document from the stores and from the entities topic, unless a later version is there; as above."""
        erasure = admit_erasure(record)
        write = await self._persist("store", lambda: asyncio.to_thread(self._store.erase, erasure))
        await self._publish_all(erasure, write.unpublished, passed_on(record))
        # Of feedback the time counts at which the erasure was asked for, whatever version it is of.
        id_, at = erasure.document_id, _seconds(record)
        await self._persist("feedback", lambda: asyncio.to_thread(self._feedback.erase, id_, at))
        self._observe(ERASURES, 1)
        await self._note(record, id_, "superseded" if write.outcome == "superseded" else "erased")

    async def learn(self, record: Record) -> None:
        """Stores feedback, or deletes it: a record with a key alone, as Kafka deletes. DocumentError if it is none."""
        at = _seconds(record)
        if record.key and not record.value:
            id_ = record.key.decode("utf-8", "replace")
            await self._persist("feedback", lambda: asyncio.to_thread(self._feedback.undo, id_, at))
            kind = "undone"
        else:
            feedback, unknown = admit_feedback(record.value, at)
            self._observe(UNKNOWN_FIELDS, unknown)
            await self._persist("feedback", lambda: asyncio.to_thread(self._feedback.put, feedback))
            id_, kind = feedback.id, "accepted" if feedback.accepted else "rejected"
        self._observe(FEEDBACK, 1, {"kind": kind})
        await self._note(record, id_, kind)

    async def _publish_all(
        self, own: Extraction | Erasure, newest: Extraction | Erasure | None, headers: Headers
    ) -> None:
        while newest is not None:
            if newest.source != own.source:
                headers = ()  # those of another record
            newest = await self._publish(own, newest, headers)

    async def _publish(
        self, own: Extraction | Erasure, newest: Extraction | Erasure, headers: Headers
    ) -> Extraction | Erasure | None:
        start = time.perf_counter()
        value = None if isinstance(newest, Erasure) else newest.model_dump_json().encode()
        if value is not None and len(value) > self._settings.max_message_bytes:
            if newest.source != own.source:  # which is told where that record is handled
                return None
            raise DocumentError(
                "entities",
                "are in the store, but take more bytes than a message may have",
                "raise BIOBRACKET_MAX_MESSAGE_BYTES, or split the document",
                reason="too_large",
            )
        key = newest.document_id.encode()
        if isinstance(newest, Erasure):
            headers = (*headers, *erasure_headers(newest.source))
        else:
            headers = (*headers, (_KEY, newest.key.encode()))
        await self._persist("publish", lambda: self._send(self._settings.topic_entities, key, value, headers))
        later = await self._persist("store", lambda: asyncio.to_thread(self._store.published, own, newest))
        self._observe(STAGE_SECONDS, time.perf_counter() - start, {"stage": "publish"})
        return later

    async def bury(self, record: Record, document: Document | None, error: DocumentError) -> bool:
        """Sends a record, from which a document may have been read, to the dead letters.

        False where its document was erased since, which a dead letter would keep.
        """
        if await self._erased(record, document):
            await self._note(record, _id(record, document), "erased")
            return False
        logger.warning(
            "dead_letter",
            reason=error.reason,
            field=error.field,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
        )
        if record_bytes(record) > self._settings.max_message_bytes + _HEADERS_BYTES:
            # Another producer's limit is higher. What cannot be sent on can still be told where it is.
            letter = replace(record, key=None, value=None, headers=())
        else:
            letter = record
        headers = dead_letter_headers(letter, error.reason, error.field)
        await self._persist(
            "dead_letter",
            lambda: self._send(self._settings.topic_dead_letters, letter.key, letter.value, headers),
        )
        await self._note(record, _id(record, document), error.reason)
        return True

    async def _erased(self, record: Record, document: Document | None) -> bool:
        if record.topic == self._settings.topic_feedback:
            return False
        id_ = _id(record, document)
        return bool(id_) and await self._persist(
            "store", lambda: asyncio.to_thread(self._store.erased, id_, position_of(record))
        )

    async def _note(self, record: Record, id_: str, outcome: str) -> None:
        trail = self._trail
        if trail is None:
            return
        action: Action = "extract"
        if record.topic == self._settings.topic_feedback:
            action = "feedback"
        elif erases(record):
            action = "forget"

        def add() -> None:
            try:
                trail.add(f"topic {record.topic}", action, id_, outcome)
            except OSError as error:
                raise StoreError(
                    f"cannot write the audit trail ({error.strerror}); look at the folder BIOBRACKET_AUDIT", True
                ) from None

        await self._persist("audit", lambda: asyncio.to_thread(add))

    async def _send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        sent = await asyncio.to_thread(self._sink.send, topic, key, value, headers)
        # Shielded: cancelling a document must not cancel what the client is going to resolve.
        await asyncio.shield(asyncio.wrap_future(sent))


def passed_on(record: Record) -> Headers:
    """The headers that a document's result is published with: its own, such as ``traceparent``, and if it is a replay.

    Of headers larger than a record has room for only those of W3C Trace Context are left
    (https://www.w3.org/TR/trace-context/).
    """
    kept = tuple((name, value) for name, value in own_headers(record) if name != _KEY)
    if sum(len(name.encode()) + len(value) for name, value in kept) > _HEADERS_BYTES:
        kept = tuple((name, value[:_TRACE_BYTES]) for name, value in kept if name in ("traceparent", "tracestate"))[:2]
    return (*kept, *((("biobracket.replayed", b"true"),) if replayed(record) else ()))


def _id(record: Record, document: Document | None) -> str:
    """Of the document of a record; where none could be read from it, what its key says."""
    return document.id if document else (record.key or b"").decode("utf-8", "replace")


def _seconds(record: Record) -> float:
    return record.timestamp_ms / 1000 or time.time()


def record_bytes(record: Record) -> int:
    """Bytes of a record's key, value and headers."""
    parts = (record.key, record.value, *(part for name, value in record.headers for part in (name.encode(), value)))
    return sum(len(part or b"") for part in parts)
