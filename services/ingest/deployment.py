"""The ingest service as a Ray Serve deployment: one consumer per replica."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import Any

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
from services.ingest.config import IngestConfig
from services.ingest.consumer import Consumer
from services.ingest.scaling import LAG, LagPolicy
from services.replica_deployment import deployment
from shared.backends.eviction import refuse_eviction
from shared.backends.feedback_store import FeedbackStore
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
        self._consumer = Consumer(
            open_source=self._open_source,
            open_sink=self._open_sink,
            store=self._store,
            process=self._process,
            feedback=self._feedback,
            settings=settings("ingest"),
            config=_CONFIG,
            halts=self._halts,
            transient=TRANSIENT,
            crashes=CRASHES,
            observe=RayObserver(),
            trail=self._trail,
        )
        self._task = asyncio.get_running_loop().create_task(self._consumer.run())

    async def status(self) -> dict[str, Any]:
        """What this replica is doing, see :class:`services.ingest.consumer.Status`."""
        return asdict(self._consumer.status())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What :class:`LagPolicy` scales by; Ray Serve calls this."""
        return {LAG: self._consumer.status().lag}

    async def check_health(self) -> None:
        """RuntimeError if the consumer ended or stalled; Ray Serve then replaces the replica."""
        if self._task.done():
            raise RuntimeError("ingest: the consumer ended; this replica's log has the cause")
        if stalled := self._consumer.stalled():
            raise RuntimeError(f"ingest: {stalled}")
        with suppress(StoreError):  # it is asked again
            await asyncio.to_thread(self._feedback.expire)

    async def __del__(self) -> None:
        """Ray Serve awaits this when it stops a replica: lets documents in flight finish and commits their offsets."""
        self._consumer.stop()
        await asyncio.wait([self._task])
        self._store.close()
        self._feedback.close()
        self._halts.close()
        if self._trail is not None:
            self._trail.close()

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
