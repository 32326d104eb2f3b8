"""Dynamic batching for a model: first in, first out, each batch filled up to a token budget."""

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
    """Batches the requests of many callers, runs them in one thread, and returns each caller its own answers.

    ``run`` returns one answer per request of a batch and ``tokens`` the cost of a request; ``full`` is the message of
    the error when too many are waiting. ``executor`` has one thread. Create and use a batcher in one event loop.
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
        """Number of waiting requests."""
        return len(self._queue)

    async def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """The answer to each request. Overloaded if other requests are waiting and there is no room for these."""
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
            except Exception as error:  # passed to the callers of this batch; the next one is tried all the same
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # its caller may have been cancelled
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
        """Cancel waiting requests and wait for the running batch."""
        for _, _, future in self._queue:
            future.cancel()
        self._queue.clear()
        self._executor.shutdown()
