"""Work that is tried until it succeeds, or until the document or the end of the consumer stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from services.ingest.backoff import Backoff
from services.ingest.config import IngestConfig
from shared.errors import DocumentError, Overloaded, StoreError, StreamError
from shared.runtime.logs import get_logger
from shared.runtime.metrics import RETRIES, Observe

T = TypeVar("T")

# From so many failures in a row on, a stage is reported as troubled: one lost connection is no outage.
_OUTAGE = 3

logger = get_logger(__name__)


class Stopped(Exception):
    """The consumer stops: what failed is not tried again."""


class Crashed(Exception):
    """A process died while it worked on the document."""


class Retries:
    """The retries of one consumer; all of it belongs to one event loop.

    Overloaded, an error of the store or the broker, or one of a class in ``transient`` is retried until it is over; any
    other ``config.attempts`` times. One of a class in ``crashes`` is not: what it means takes more than the document to
    tell. A class in ``transient`` may be a special case of one in ``crashes``.
    """

    def __init__(
        self,
        config: IngestConfig,
        *,
        transient: tuple[type[Exception], ...],
        crashes: tuple[type[Exception], ...],
        observe: Observe,
    ) -> None:
        self._attempts = config.attempts
        self._backoff = Backoff(config.backoff_s, config.backoff_max_s)
        self._transient: tuple[type[Exception], ...] = (Overloaded, StreamError, StoreError, *transient)
        self._crashes = crashes
        self._observe = observe
        self._troubles: dict[str, str] = {}
        self.stopping = asyncio.Event()
        self.count = 0

    async def persist(self, stage: str, work: Callable[[], Awaitable[T]]) -> T:
        """What ``work`` returns. DocumentError where the document is to blame, :class:`Crashed`, :class:`Stopped`."""
        try:
            return await self._persist(stage, work)
        finally:  # also where it was given up: no trouble outlives the work that had it
            self.succeeded(stage)

    async def _persist(self, stage: str, work: Callable[[], Awaitable[T]]) -> T:
        failures = refusals = 0
        while True:
            try:
                return await work()
            except (DocumentError, Crashed):
                raise
            except self._transient as error:
                cause: BaseException = error
            except self._crashes as error:
                logger.warning("crashed", stage=stage, error=error)
                raise Crashed from None
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                cause = error  # not this document was cancelled, but its request, by a replica that stops
            except Exception as error:
                cause = error
                refusals += 1
                if refusals >= self._attempts:
                    logger.error("exhausted", stage=stage, error=error, attempt=refusals)
                    raise DocumentError(
                        "document",
                        f"failed {refusals} times",
                        "see the log of the service that failed, then replay the dead letter",
                        reason="exhausted",
                    ) from None
            if self.stopping.is_set():
                raise Stopped
            failures += 1
            self.count += 1
            self._observe(RETRIES, 1, {"stage": stage})
            # A document that fails by itself is not an outage.
            await self.wait(stage, cause, failures, outage=not refusals)

    async def wait(self, stage: str, error: BaseException, failures: int, *, outage: bool = True) -> None:
        """Waits before the next try, after so many failures in a row; less where the consumer stops."""
        if failures & (failures - 1) == 0:  # 1, 2, 4, 8 ...: an outage is not a line a document and second
            logger.warning("retry", stage=stage, error=error, attempt=failures)
        if outage and failures >= _OUTAGE:
            # Messages of these two name the setting and the remedy; others could hold anything.
            known = isinstance(error, StreamError | StoreError)
            self._troubles[stage] = str(error) if known else f"{stage}: {type(error).__name__}, tried again"
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), self._backoff.delay(failures))

    def succeeded(self, stage: str) -> None:
        """An outage of this stage, if there was one, is over, or nobody waits for its end."""
        self._troubles.pop(stage, None)

    def trouble(self) -> str | None:
        """What has been failing for a while, and what to do; None if nothing is."""
        return next(iter(self._troubles.values()), None)
