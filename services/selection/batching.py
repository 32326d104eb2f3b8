"""Batches for what runs a model: by token budget, what waits longest first, each as large as the budget lets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Generic, TypeVar

from shared.errors import Overloaded

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Batcher(Generic[Request, Answer]):
    """Takes requests from many callers, runs them in one thread, and gives each caller its own answers.

    ``run`` gives one answer for each request of a batch, ``tokens`` what a request costs; ``full`` is the
    message where too many wait. ``executor``: of one thread. Must be made and used in one event loop.
    """

    def __init__(
        self,
        run: Callable[[list[Request]], Sequence[Answer]],
        tokens: Callable[[Request], int],
        *,
        batch_tokens: int,
        max_queued: int,
        full: str,
        executor: Executor | None = None,
    ) -> None:
        self._call = run
        self._tokens = tokens
        self._batch_tokens = batch_tokens
        self._max_queued = max_queued
        self._full = full
        self._queue: deque[tuple[Request, int, asyncio.Future[Answer]]] = deque()
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")
        self._runner: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """The answer to each request. Overloaded where the queue is full and somebody else's requests fill it."""
        if self._queue and len(self._queue) + len(requests) > self._max_queued:
            raise Overloaded(self._full)
        loop = asyncio.get_running_loop()
        futures = []
        for request in requests:
            future: asyncio.Future[Answer] = loop.create_future()
            self._queue.append((request, self._tokens(request), future))
            futures.append(future)
        if self._queue and (self._runner is None or self._runner.done()):
            self._runner = loop.create_task(self._run())
        return list(await asyncio.gather(*futures))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            requests = [request for request, _, _ in batch]
            try:
                answers = await loop.run_in_executor(self._executor, self._call, requests)
            except Exception as error:  # the callers learn of it; the next batch has its own chance
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # its caller may have gone
                    future.set_result(answer)

    def _next(self) -> list[tuple[Request, int, asyncio.Future[Answer]]]:
        batch: list[tuple[Request, int, asyncio.Future[Answer]]] = []
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
