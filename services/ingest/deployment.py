"""The ingest service as a Ray Serve deployment: one consumer per replica."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from ray import serve
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    RpcError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.config import AutoscalingPolicy
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from services.audit_trail import AuditTrail
from services.handles import answer
from services.ingest.config import IngestConfig
from services.ingest.consumer import Consumer
from services.ingest.handover import Handover
from services.ingest.scaling import LAG, LagPolicy
from services.ingest.status import WAITING, Status
from services.replica_deployment import deployment
from shared.backends.eviction import refuse_eviction
from shared.backends.feedback_store import FeedbackStore
from shared.backends.group_lease import GroupLease
from shared.backends.halt_store import HaltStore
from shared.backends.records import Callback
from shared.backends.result_store import ResultStore
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Membership, Source
from shared.backends.streams.topics import ensure_topics
from shared.errors import StoreError
from shared.messages import Document, Extraction
from shared.runtime import logs
from shared.runtime.ray_metrics import RayObserver
from shared.settings import settings

# Errors that say nothing about the document: the cluster is short of a resource, or a replica is placed anew.
# What a service raises is both a RayTaskError and of its own class, so an error further down is caught as well.
TRANSIENT: tuple[type[Exception], ...] = (
    ActorUnavailableError,  # a RayActorError, but of one that is out of reach and may come back
    BackPressureError,
    DeploymentUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RaySystemError,
    ReplicaUnavailableError,
    RpcError,
    TaskCancelledError,
)
# A process died with the document in hand, maybe because of it.
CRASHES: tuple[type[Exception], ...] = (OutOfMemoryError, RayActorError, WorkerCrashedError)

# A model that is in memory answers in milliseconds.
_READY_S = 10.0

_CONFIG = IngestConfig()


@deployment(
    "ingest",
    _CONFIG,
    scaling={
        "policy": AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=LagPolicy,
            policy_kwargs={"lag_per_replica": _CONFIG.lag_per_replica},
        ),
        "upscale_delay_s": _CONFIG.upscale_delay_s,
        "downscale_delay_s": _CONFIG.downscale_delay_s,
    },
    # Time to close the clients after the last document.
    graceful_shutdown_timeout_s=_CONFIG.drain_s + 15.0,
)
class Ingest:
    """Consumes documents for as long as the replica lives. ``pipeline`` is the handle of the pipeline service."""

    def __init__(self, pipeline: DeploymentHandle[Any]) -> None:
        logs.configure(settings("ingest"))
        _check_store()
        self._pipeline = pipeline
        self._store = ResultStore.from_settings(settings("ingest"))
        self._feedback = FeedbackStore.from_settings(settings("ingest"))
        self._halts = HaltStore(settings("ingest"), _CONFIG.group)
        self._trail = AuditTrail.from_settings(settings("ingest"))
        self._lease = _lease(_CONFIG)
        self._observe = RayObserver()
        self._consumer: Consumer | None = None
        self._handover = Handover(self._lease, self._ready, self._observe)
        self._task = asyncio.get_running_loop().create_task(self._handover.run(self._make_consumer))

    async def status(self) -> dict[str, Any]:
        """What this replica is doing, see :class:`services.ingest.status.Status`."""
        return asdict(self._status())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What :class:`LagPolicy` scales by; Ray Serve calls this."""
        return {LAG: self._status().lag}

    async def check_health(self) -> None:
        """RuntimeError if the consumer ended or stalled; Ray Serve then replaces the replica."""
        if self._task.done():
            raise RuntimeError("ingest: the consumer ended; this replica's log has the cause")
        if self._handover.tenant is not None and self._consumer and (stalled := self._consumer.stalled()):
            raise RuntimeError(f"ingest: {stalled}")
        with suppress(StoreError):  # it is asked again
            await asyncio.to_thread(self._feedback.expire)

    async def __del__(self) -> None:
        """Ray Serve awaits this when it stops a replica: lets documents in flight finish and commits their offsets."""
        self._handover.stop()
        await asyncio.wait([self._task])
        if self._lease is not None:
            self._lease.close()
        self._store.close()
        self._feedback.close()
        self._halts.close()
        if self._trail is not None:
            self._trail.close()

    def _make_consumer(self) -> Consumer:
        self._consumer = Consumer(
            open_source=self._open_source,
            open_sink=self._open_sink,
            store=self._store,
            process=self._handover.guarded(self._process),
            feedback=self._feedback,
            settings=settings("ingest"),
            config=_CONFIG,
            halts=self._halts,
            transient=TRANSIENT,
            crashes=CRASHES,
            observe=self._observe,
            trail=self._trail,
        )
        return self._consumer

    def _status(self) -> Status:
        return WAITING if self._handover.tenant is None or self._consumer is None else self._consumer.status()

    async def _ready(self) -> bool:
        """Whether the pipeline answers, and all that it calls; what it does not say in time is no."""
        try:
            ready: bool = await asyncio.wait_for(answer(self._pipeline.ready.remote()), _READY_S)
        except Exception:  # whatever it is, the service's own log says it
            return False
        return ready

    def _open_sink(self) -> Sink:
        ensure_topics(settings("ingest"))
        return Sink(settings("ingest"))

    def _open_source(self, on_revoked: Callback) -> Source:
        topics = [settings("ingest").topic_documents, settings("ingest").topic_feedback]
        return Source(
            settings("ingest"),
            _CONFIG.group,
            topics,
            attempts=_CONFIG.attempts,
            membership=_membership(_CONFIG, serve.get_replica_context().rank.rank),
            on_revoked=on_revoked,
        )

    async def _process(self, document: Document) -> Extraction:
        extraction: Extraction = await self._pipeline.extract.remote(document)
        return extraction


def _lease(config: IngestConfig) -> GroupLease | None:
    """What tells this deployment from others of the group; None where there is one only."""
    if not config.deployment:
        return None
    return GroupLease(settings("ingest"), config.group, config.deployment, uuid4().hex, config.lease_s)


def _membership(config: IngestConfig, rank: int) -> Membership:
    """Of the replica with this rank. No two that run have the same, and one that is replaced hands it on."""
    instance = f"{config.instance}-{rank}" if config.instance else ""
    return Membership(session_s=config.session_s, heartbeat_s=config.heartbeat_s, instance=instance)


def _check_store() -> None:
    """StoreError where the store would lose results by itself. What cannot be found out now keeps nobody waiting."""
    try:
        if not refuse_eviction(settings("ingest")):
            logs.get_logger(__name__).warning("eviction_unknown")
    except StoreError as error:
        if not error.retryable:
            raise
