"""One deployment of the group at a time: consumers that run while their deployment holds the group's lease.

A new deployment waits until its pipeline can work, claims the lease and consumes once the one before has left. When it
is succeeded itself, it finishes what is in flight, commits, leaves, and waits: should its successor vanish, it goes on.
See :mod:`shared.backends.group_lease`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from shared.errors import StoreError
from shared.messages import Document, Extraction
from shared.runtime.logs import get_logger
from shared.runtime.metrics import LEASE_EPOCH, Observe

if TYPE_CHECKING:
    from shared.backends.group_lease import GroupLease, Term

# How often a replica asks: how soon the one before learns that it is succeeded.
_ASK_S = 1.0
# A result is not begun to be delivered so near the end of a term, since the server may take that long for it.
_MARGIN_S = 10.0

logger = get_logger(__name__)

Process = Callable[[Document], Awaitable[Extraction]]


class Tenant(Protocol):
    """What runs during a term: :class:`services.ingest.consumer.Consumer`."""

    async def run(self) -> None:
        """Consumes until stopped."""

    def stop(self) -> None:
        """Makes :meth:`run` finish, commit and return."""


class Handover:
    """The terms of one replica; all of it belongs to one event loop.

    ``lease`` is None where there is one deployment only. ``ready`` tells whether the pipeline can work.
    """

    def __init__(
        self,
        lease: GroupLease | None,
        ready: Callable[[], Awaitable[bool]],
        observe: Observe,
        *,
        ask_s: float = _ASK_S,
        margin_s: float = _MARGIN_S,
    ) -> None:
        self._lease = lease
        self._ready = ready
        self._observe = observe
        self._ask_s = ask_s
        self._margin_s = margin_s
        self._until: float | None = None
        self._stopping = asyncio.Event()
        self.tenant: Tenant | None = None

    def stop(self) -> None:
        """Makes :meth:`run` end the term, if there is one, and return."""
        self._stopping.set()
        if self.tenant is not None:
            self.tenant.stop()

    async def run(self, make: Callable[[], Tenant]) -> None:
        """Runs what ``make`` returns, anew in each term, until :meth:`stop`. Raises what that raises."""
        if self._lease is None:
            await self._occupy(make())
            return
        while not self._stopping.is_set():
            epoch = await self._enter(self._lease)
            if epoch is None:
                continue
            try:
                await self._serve(self._lease, epoch, make())
            finally:
                self._observe(LEASE_EPOCH, 0)
                self._until = None
                with suppress(StoreError):  # it ends by itself
                    await asyncio.to_thread(self._lease.leave, epoch)
            logger.info("lease_left", count=epoch)

    def guarded(self, process: Process) -> Process:
        """``process``, but nothing of it is delivered outside a term: StoreError, retryable, instead."""
        if self._lease is None:
            return process

        async def guard(document: Document) -> Extraction:
            self._check()
            extraction = await process(document)
            self._check()
            return extraction

        return guard

    def _check(self) -> None:
        if self._until is None or time.monotonic() > self._until - self._margin_s:
            raise StoreError("ingest: the group's lease cannot be renewed; check the server of BIOBRACKET_REDIS", True)

    async def _enter(self, lease: GroupLease) -> int | None:
        """The epoch in which to consume; None, after a while, where it is not to be."""
        self._observe(LEASE_EPOCH, 0)
        if await self._ready():
            term = await _told(lease.enter)
            if term is not None and term.until is not None:
                self._until = term.until
                self._observe(LEASE_EPOCH, term.epoch)
                logger.info("lease_entered", count=term.epoch)
                return term.epoch
        await self._pause()
        return None

    async def _serve(self, lease: GroupLease, epoch: int, tenant: Tenant) -> None:
        running = asyncio.create_task(self._occupy(tenant))
        keeping = asyncio.create_task(self._keep(lease, epoch, tenant))
        try:
            await asyncio.wait([running, keeping], return_when=asyncio.FIRST_COMPLETED)
            tenant.stop()
            await running
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
        if not keeping.cancelled():
            keeping.result()

    async def _keep(self, lease: GroupLease, epoch: int, tenant: Tenant) -> None:
        """Renews the term, also while the tenant finishes after it was succeeded."""
        succeeded = False
        while True:
            await asyncio.sleep(self._ask_s)
            term = await _told(lambda: lease.renew(epoch))
            if term is None:  # until the server is back, or the term over
                continue
            self._until = term.until
            if term.epoch != epoch and not succeeded:
                succeeded = True
                logger.warning("lease_succeeded", count=term.epoch)
                tenant.stop()

    async def _occupy(self, tenant: Tenant) -> None:
        self.tenant = tenant
        if self._stopping.is_set():
            tenant.stop()
        try:
            await tenant.run()
        finally:
            self.tenant = None

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._ask_s)


async def _told(ask: Callable[[], Term]) -> Term | None:
    """What the server says; None where it is out of reach."""
    try:
        return await asyncio.to_thread(ask)
    except StoreError as error:
        logger.warning("lease_unknown", error=error)
        return None
