"""Continuous batching: segments join and leave between passes (Orca, Yu et al. 2022).

A pass runs the next tokens of all running segments, and waiting segments join while it is below its token budget:
passes stay large enough for fast matrix products, and no segment waits for the longest of its batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from services.generation.config import GenerationConfig
from services.generation.copy.forward import Answer, Forward, Part, Task
from shared.model.cache import Cache
from shared.runtime.cpus import cpus

Q = TypeVar("Q")
T = TypeVar("T")


class Scheduler(Generic[Q, T]):
    """Runs the tasks of requests in passes. Thread-safe.

    Everything except matrix products runs on a single core, so several workers run in parallel, each with its own
    passes and cache. ``task`` makes the task of a request, given the worker.
    """

    def __init__(self, forward: Forward, task: Callable[[Q, Worker], Task[T]], config: GenerationConfig) -> None:
        on_cpu = forward.device.type == "cpu"
        self._forward, self._task = forward, task
        self._threads = (config.threads or cpus()) if on_cpu else 1
        self._token_budget = config.pass_tokens or (512 if on_cpu else 8192)
        self._cache_tokens = config.cache_tokens
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="copy")
        self._own = threading.local()
        self._waiting: deque[tuple[Q, Future[T]]] = deque()
        self._lock = threading.Lock()
        self._workers = 0

    def submit(self, request: Q) -> Future[T]:
        """A future of what the request's task returns. If cancelled before its turn, it costs nothing."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.append((request, future))
            if self._workers < self._threads:
                self._workers += 1
                self._executor.submit(self._work)
        return future

    @torch.inference_mode()
    def _work(self) -> None:
        """Runs passes while there is anything to do."""
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None:  # kept: newly allocated memory is slow
            worker = self._own.worker = Worker(self._forward.cache())
        running: list[_Running[T]] = []
        while True:
            self._admit(running, worker)
            with self._lock:
                if not running and not self._waiting:
                    self._workers -= 1
                    return
                threads = self._threads // self._workers
            if self._forward.device.type == "cpu" and torch.get_num_threads() != threads:
                torch.set_num_threads(threads)  # of this worker only
            try:
                answers = iter(self._forward.run([part for one in running for part in one.parts], worker.cache))
                running = [one for one in running if one.take([next(answers) for _ in one.parts])]
            except Exception as error:  # running segments fail with it; waiting ones get their own chance
                for one in running:
                    one.fail(error)
                running = []
                worker.clear()

    def _admit(self, running: list[_Running[T]], worker: Worker) -> None:
        """Starts waiting segments until the pass is full or the cache has reached its limit."""
        tokens = sum(one.tokens for one in running)
        while tokens < self._token_budget and worker.cache.used < self._cache_tokens:
            with self._lock:
                if not self._waiting:
                    return
                request, future = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            one = _Running(self._task(request, worker), future)
            if one.begin():
                running.append(one)
                tokens += one.tokens


class Worker:
    """What a worker keeps between passes: its cache, and where headers are in it."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.headers: dict[tuple[int, ...], int] = {}

    def clear(self) -> None:
        """Forget all."""
        self.cache.clear()
        self.headers.clear()


class _Running(Generic[T]):
    """A running segment: its task, what that needs from the next pass, and the future of its result."""

    def __init__(self, task: Task[T], future: Future[T]) -> None:
        self._task = task
        self._future = future
        self.parts: list[Part] = []

    @property
    def tokens(self) -> int:
        """Tokens in the next pass."""
        return sum(len(part.ids) for part in self.parts)

    def begin(self) -> bool:
        """Starts the task; false if it needs no pass."""
        return self._on(None)

    def take(self, answers: Sequence[Answer]) -> bool:
        """Continues with the answers of a pass; false if that was the last."""
        return self._on(answers)

    def _on(self, answers: Sequence[Answer] | None) -> bool:
        try:
            self.parts = next(self._task) if answers is None else self._task.send(list(answers))
        except StopIteration as stop:
            self._future.set_result(stop.value)
            return False
        except Exception as error:  # of this segment alone
            self._future.set_exception(error)
            return False
        return True

    def fail(self, error: Exception) -> None:
        """Ends the task; its error goes to whoever waits, unless the result is already there."""
        self._task.close()
        if not self._future.done():
            self._future.set_exception(error)
