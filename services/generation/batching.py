"""Batches for an engine, by token budget: what waits longest goes first, and a batch is as large as the budget lets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from services.generation.engine import Engine, TagRequest
from shared.errors import Overloaded
from shared.messages import TaggedLine

_Item = tuple[TagRequest, int, asyncio.Future[list[TaggedLine]]]


class Batcher:
    """Takes requests from many callers, runs them on an engine in one thread, and gives each caller its own lines.

    ``observe`` is told the number of segments and tokens of each batch. Must be made and used in one event loop.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        batch_tokens: int,
        max_queued: int,
        observe: Callable[[int, int], None] = lambda segments, tokens: None,
    ) -> None:
        self._engine = engine
        self._batch_tokens = batch_tokens
        self._max_queued = max_queued
        self._observe = observe
        self._queue: deque[_Item] = deque()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._runner: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Segments that wait."""
        return len(self._queue)

    async def tag(self, requests: Sequence[TagRequest]) -> list[list[TaggedLine]]:
        """The lines of each request. Overloaded where the queue is full and somebody else's requests fill it."""
        if self._queue and len(self._queue) + len(requests) > self._max_queued:
            raise Overloaded("generation: too many segments wait; send less or raise BIOBRACKET_GENERATION_MAX_QUEUED")
        loop = asyncio.get_running_loop()
        futures = []
        for request in requests:
            future: asyncio.Future[list[TaggedLine]] = loop.create_future()
            self._queue.append((request, self._engine.tokens(request), future))
            futures.append(future)
        if self._queue and (self._runner is None or self._runner.done()):
            self._runner = loop.create_task(self._run())
        return list(await asyncio.gather(*futures))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            requests = [request for request, _, _ in batch]
            try:
                results = await loop.run_in_executor(self._executor, self._engine.tag, requests)
            except Exception as error:  # the callers learn of it; the next batch has its own chance
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            self._observe(len(batch), sum(cost for _, cost, _ in batch))
            for (_, _, future), lines in zip(batch, results, strict=True):
                if not future.done():  # its caller may have gone
                    future.set_result(lines)

    def _next(self) -> list[_Item]:
        batch: list[_Item] = []
        used = 0
        while self._queue:
            _, cost, future = self._queue[0]
            if future.cancelled():
                self._queue.popleft()
                continue
            if batch and used + cost > self._batch_tokens:
                break
            batch.append(self._queue.popleft())
            used += cost
        return batch

    def close(self) -> None:
        """Wait for the batch under way; what still waits is cancelled."""
        for _, _, future in self._queue:
            future.cancel()
        self._queue.clear()
        self._executor.shutdown()
