"""The consumer: records to results, at least once, and effectively once because results are idempotent.

A document goes through the pipeline, into the store and onto the entities topic, each step retried by itself; only
then is its record done. Documents of one id go one after the other; an erasure waits for none of them. Feedback of
reviewers goes into the store, where selectors find it. A record that holds none of these, or one that cannot be
processed, goes to the dead letters. Offsets are committed up to the first record that is not done.

Nothing is lost because every offset between a partition's committed offset and the client's position is waiting (in
the backlog), in flight or done (in the watermark). Work is dropped in one place, :meth:`Consumer._release`, whole
partitions at a time and with their watermarks; the source then reads them again from the committed offset.

All state belongs to the event loop. Calls that block run in threads, those of the Kafka consumer in a single one,
which reads on whatever inference does: what does not fit into the window pauses the partitions instead.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from services.audit_trail import AuditTrail
from services.ingest.admission import admit, unreadable
from services.ingest.breaker import Breaker
from services.ingest.config import IngestConfig
from services.ingest.delivery import Delivery, record_bytes
from services.ingest.halting import Halting
from services.ingest.retries import Crashed, Retries, Stopped
from services.ingest.stalls import StallDetector
from services.ingest.status import Status
from services.ingest.suspects import Suspects
from services.ingest.turns import Turns
from services.ingest.watermarks import Watermark
from shared.backends.records import Callback, Partition, Record, erases, position_of
from shared.errors import DocumentError, Fenced, Rebalancing, StreamError
from shared.messages import Document, Extraction
from shared.runtime.logs import get_logger
from shared.runtime.metrics import (
    DEAD_LETTERS,
    DOCUMENT_SECONDS,
    DOCUMENTS,
    IN_FLIGHT,
    LAG,
    STALLED,
    UNKNOWN_FIELDS,
    Observe,
    unobserved,
)
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.backends.feedback_store import FeedbackStore
    from shared.backends.halt_store import HaltStore
    from shared.backends.result_store import ResultStore
    from shared.backends.streams.sink import Sink
    from shared.backends.streams.source import Source

T = TypeVar("T")
Process = Callable[[Document], Awaitable[Extraction]]

# The others go on meanwhile, and this consumer with what it has read of the partitions that it keeps.
_FINISH_S = 2.0
# With the default `poll_s`, five seconds: a rebalance is settled in less, and a stop waits no longer for one.
_SETTLE_POLLS = 20

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    record: Record
    # Held, not looked up when done: after a rebalance its partition has another one.
    watermark: Watermark
    size: int


class Consumer:
    """One consumer of the group.

    ``open_source``, given a callback for revoked partitions, and ``open_sink`` connect; they are called in threads and
    tried until they do. The consumer closes what they return, and leaves ``store`` and ``feedback`` open. ``process``
    makes a document's extraction. A DocumentError of it sends the document to the dead letters. For ``transient`` and
    other errors see :class:`services.ingest.retries.Retries`; errors of ``crashes`` say that a process died, for which
    :class:`services.ingest.suspects.Suspects` finds the document to blame. ``halts`` tells when not to go on.
    ``trail``: see :class:`services.ingest.delivery.Delivery`.
    """

    def __init__(
        self,
        *,
        open_source: Callable[[Callback], Source],
        open_sink: Callable[[], Sink],
        store: ResultStore,
        feedback: FeedbackStore,
        process: Process,
        settings: Settings,
        config: IngestConfig,
        halts: HaltStore,
        transient: tuple[type[Exception], ...] = (),
        crashes: tuple[type[Exception], ...] = (),
        observe: Observe = unobserved,
        trail: AuditTrail | None = None,
    ) -> None:
        self._open_source = open_source
        self._open_sink = open_sink
        self._store = store
        self._feedback = feedback
        self._process = process
        self._settings = settings
        self._config = config
        self._observe = observe
        self._trail = trail
        self._retries = Retries(config, transient=transient, crashes=crashes, observe=observe)
        self._suspects: Suspects[_Work] = Suspects(config.attempts)
        breaker = Breaker(config.breaker_run, config.breaker_share)
        self._halting = Halting(halts, breaker, self._retries, observe)
        self._stalls = StallDetector(config.stalled_s)
        self._kafka = ThreadPoolExecutor(1, thread_name_prefix="kafka")
        self._source: Source
        self._loop: asyncio.AbstractEventLoop
        self._watermarks: dict[Partition, Watermark] = {}
        self._committed: dict[Partition, int] = {}
        self._backlog: deque[_Work] = deque()  # read, and waiting for room
        self._running: dict[asyncio.Task[None], _Work] = {}
        self._running_bytes = 0
        self._turns = Turns()
        self._delivery: Delivery
        self._delivering: set[asyncio.Task[None]] = set()
        self._commit_due = 0.0
        self._failure: BaseException | None = None
        self._lag = self._processed = self._dead_lettered = 0

    def status(self) -> Status:
        """A snapshot; to be called on the loop that runs the consumer."""
        return Status(
            lag=self._lag,
            in_flight=len(self._running),
            in_flight_bytes=self._running_bytes,
            paused=self._full(),
            processed=self._processed,
            dead_lettered=self._dead_lettered,
            retries=self._retries.count,
            halted=self._halting.why,
            problem=self.stalled() or self._retries.trouble() or self._halting.problem,
            committed={f"{topic}-{partition}": offset for (topic, partition), offset in self._committed.items()},
        )

    def stalled(self) -> str | None:
        """What has come to a silent stop, which a new replica heals; None if all is well.

        To be asked from outside, time and again: whatever hangs in here cannot tell.
        """
        why = self._stalls.stalled()
        self._observe(STALLED, float(why is not None))
        return why

    def stop(self) -> None:
        """Makes :meth:`run` finish what is in flight, for ``config.drain_s`` at most, commit and return."""
        self._retries.stopping.set()

    async def run(self) -> None:
        """Consumes until :meth:`stop`. Raises on a fault of this program only, and loses nothing then either."""
        self._loop = asyncio.get_running_loop()
        with suppress(Stopped):
            async with AsyncExitStack() as cleanup:
                cleanup.callback(self._kafka.shutdown, wait=False)
                sink = await self._connect(self._open_sink)
                cleanup.push_async_callback(self._leave, sink.close)
                self._delivery = Delivery(
                    store=self._store,
                    feedback=self._feedback,
                    sink=sink,
                    settings=self._settings,
                    persist=self._retries.persist,
                    observe=self._observe,
                    trail=self._trail,
                )
                self._source = await self._connect(self._open_source, self._on_revoked)
                cleanup.push_async_callback(self._leave, self._source.close)
                cleanup.push_async_callback(self._settle)
                await self._consume()
        self._check()

    async def _connect(self, connect: Callable[..., T], *args: Any) -> T:
        failures = 0
        while not self._retries.stopping.is_set():
            try:
                connected = await self._in_kafka_thread(connect, *args)
            except StreamError as error:
                failures += 1
                await self._retries.wait("connect", error, failures)
            else:
                self._retries.succeeded("connect")
                return connected
        raise Stopped

    async def _consume(self) -> None:
        failures = 0
        while not self._retries.stopping.is_set():
            self._check()
            try:
                await self._turn()
            except Fenced:  # for good: a new replica finds a name of its own
                raise
            except StreamError as error:
                failures += 1
                self._stalls.look(idle=False, state=None)
                await self._retries.wait("consume", error, failures)
            else:
                failures = 0
                self._retries.succeeded("consume")

    async def _turn(self) -> None:
        """Reads what fits, starts it and commits what is done."""
        room = self._config.max_documents - len(self._running) - len(self._backlog)
        await self._accept(await self._in_kafka_thread(self._read, self._full(), max(1, room)))
        await self._halting.look()
        self._start()
        if self._loop.time() >= self._commit_due:
            self._commit_due = self._loop.time() + self._config.commit_s
            with suppress(Rebalancing):  # which reading settles: nothing to wait for
                await self._commit()
            self._lag = await self._in_kafka_thread(partial(self._source.lag, committed=True))
            idle = self._lag > 0 and not self._running and not self._full()
            self._stalls.look(idle=idle, state=(self._processed, self._dead_lettered, tuple(self._committed.items())))
            self._observe(LAG, self._lag)
            self._observe(IN_FLIGHT, len(self._running))

    def _full(self) -> bool:
        return (
            bool(self._backlog or self._suspects or self._halting.why)
            or len(self._running) >= self._config.max_documents
            or self._running_bytes >= self._config.max_bytes
        )

    def _read(self, full: bool, room: int) -> list[Record]:
        # The client must be polled when there is no room as well: that is what keeps it in the group.
        if full:
            self._source.pause(self._source.assignment())
        else:
            self._source.resume(self._source.paused())
        return self._source.poll(self._config.poll_s, room)

    async def _accept(self, records: list[Record]) -> None:
        skipped: set[Partition] = set()
        for record in records:
            partition = (record.topic, record.partition)
            watermark = self._watermarks.get(partition)
            if watermark is not None and record.offset < watermark.next:
                # The log was cut, or the topic made anew: what was read of it is not what is there now.
                await self._release({partition})
                if watermark.position < record.offset:  # this is not the first that is not done
                    self._source.rewind({partition})
                    skipped.add(partition)
                watermark = None
            if partition in skipped:
                continue
            if watermark is None:
                watermark = self._watermarks[partition] = Watermark(record.offset)
                self._committed[partition] = record.offset
            watermark.add(record.offset, record.span)
            self._backlog.append(_Work(record, watermark, record_bytes(record)))

    def _start(self) -> None:
        if self._halting.why is not None:
            return
        if self._suspects:
            if not self._running:
                for work in self._suspects.take():
                    self._run(work)
            return
        while self._backlog and len(self._running) < self._config.max_documents:
            if self._running and self._running_bytes + self._backlog[0].size > self._config.max_bytes:
                return
            self._run(self._backlog.popleft())

    def _run(self, work: _Work) -> None:
        task = asyncio.create_task(self._handle(work))
        self._running[task] = work
        self._running_bytes += work.size
        task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        work = self._running.pop(task)
        self._running_bytes -= work.size
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            work.watermark.done(work.record.offset)
        elif self._watermarks.get((work.record.topic, work.record.partition)) is not work.watermark:
            return  # dropped
        elif isinstance(error, Crashed):
            self._suspects.add(work)
        elif not isinstance(error, Stopped):
            self._failure = error  # neither done nor dropped: its offset would never be committed

    def _check(self) -> None:
        if self._failure is not None:
            # `from None`: a message or traceback may hold what was being processed.
            raise RuntimeError(f"ingest: {type(self._failure).__name__} while a record was handled") from None

    async def _commit(self) -> None:
        offsets = {
            partition: watermark.position
            for partition, watermark in self._watermarks.items()
            if watermark.position != self._committed[partition]
        }
        await self._in_kafka_thread(self._source.commit, offsets)
        self._committed.update(offsets)

    def _on_revoked(self, partitions: set[Partition]) -> Future[dict[Partition, int]]:
        """Runs on a thread of the Kafka client, in the middle of a poll."""
        return asyncio.run_coroutine_threadsafe(self._release(partitions, _FINISH_S), self._loop)

    async def _release(self, partitions: set[Partition], finish_s: float = 0.0) -> dict[Partition, int]:
        """Drops partitions with all that waits or is in flight of them; what of them can be committed.

        What is in flight has ``finish_s`` seconds, so that no other consumer does it again. Whoever calls this sees to
        it that the partitions are read again from their committed offsets.
        """
        # Before anything is waited for: a partition that comes back meanwhile begins anew.
        gone = {each: self._watermarks.pop(each) for each in partitions & self._watermarks.keys()}
        committed = {partition: self._committed.pop(partition) for partition in gone}
        watermarks = set(gone.values())
        self._backlog = deque(work for work in self._backlog if work.watermark not in watermarks)
        self._suspects.drop(lambda work: work.watermark in watermarks)
        leaving = {task for task, work in self._running.items() if work.watermark in watermarks}
        if leaving and finish_s:
            await asyncio.wait(leaving, timeout=finish_s)
        for task in leaving:
            task.cancel()
        return {each: mark.position for each, mark in gone.items() if mark.position != committed[each]}

    async def _settle(self) -> None:
        """Waits for what is in flight where the stop was asked for, commits, and drops the rest."""
        end = self._loop.time() + self._config.drain_s
        while self._running and self._retries.stopping.is_set() and self._loop.time() < end:
            await self._stay()
        for _ in range(_SETTLE_POLLS):
            try:
                await self._commit()
                break
            except Rebalancing:
                await self._stay()
            except StreamError:  # what is not committed is read again
                break
        await self._release(set(self._watermarks))
        if self._running:
            await asyncio.wait(self._running)
        if self._delivering:
            await asyncio.wait(self._delivering, timeout=_FINISH_S)

    async def _stay(self) -> None:
        """Takes part in the group and reads nothing: others need not wait for this member to settle a rebalance."""
        try:
            records = await self._in_kafka_thread(self._read, True, 1)
            # Of a partition that came in this very poll, before it could be paused.
            self._source.rewind({(record.topic, record.partition) for record in records})
        except StreamError:
            await asyncio.sleep(self._config.poll_s)

    async def _leave(self, close: Callable[[], None]) -> None:
        with suppress(StreamError):  # the broker is gone; it finds out by itself
            await self._in_kafka_thread(close)

    async def _handle(self, work: _Work) -> None:
        start = time.perf_counter()
        record = work.record
        document: Document | None = None
        try:
            if record.problem is not None:
                raise unreadable(record.problem)
            if record.topic == self._settings.topic_feedback:
                await self._delivery.learn(record)
                await self._halting.count(dead=False)
                return
            if erases(record):
                await self._deliver(self._delivery.erase(record))
            else:
                document = admit(record.value)
                self._observe(UNKNOWN_FIELDS, len(document.model_extra or {}))
                async with self._turns.turn(document.id):
                    extraction = await self._extract(work, document)
                    placed = extraction.model_copy(update={"source": position_of(record)})
                    await self._deliver(self._delivery.deliver(record, placed))
                self._observe(DOCUMENTS, 1, {"lang": extraction.lang})
            self._processed += 1
            await self._halting.count(dead=False)
        except DocumentError as error:
            if not await self._delivery.bury(record, document, error):
                self._processed += 1
                return
            self._dead_lettered += 1
            self._observe(DEAD_LETTERS, 1, {"reason": error.reason})
            await self._halting.count(dead=True)
        self._observe(DOCUMENT_SECONDS, time.perf_counter() - start)

    async def _extract(self, work: _Work, document: Document) -> Extraction:
        try:
            return await self._retries.persist("process", lambda: self._process(document))
        except Crashed:
            if not self._suspects.guilty(work):
                raise
            raise DocumentError(
                "document",
                "killed the process that worked on it, alone and again",
                "see the log of the service that died, then replay the dead letter",
                reason="crashed",
            ) from None

    async def _deliver(self, delivery: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(delivery)
        self._delivering.add(task)
        task.add_done_callback(self._delivered)
        await asyncio.shield(task)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._delivering.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it; nobody does where the record was dropped meanwhile

    async def _in_kafka_thread(self, call: Callable[..., T], *args: Any) -> T:
        try:
            return await self._loop.run_in_executor(self._kafka, partial(call, *args))
        finally:
            self._stalls.polled()
