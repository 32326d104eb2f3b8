"""Settings of the query service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.replica_config import (
    MaxOngoingRequests,
    MaxQueuedRequests,
    MaxReplicas,
    NumCpus,
    RequestReplicaConfig,
    TargetOngoingRequests,
)


class QueryConfig(RequestReplicaConfig):
    """Settings of the query service, prefix ``BIOBRACKET_QUERY_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_QUERY_")

    max_replicas: MaxReplicas = 2
    num_cpus: NumCpus = 0.5
    max_ongoing_requests: MaxOngoingRequests = 128
    target_ongoing_requests: TargetOngoingRequests = 16.0
    max_queued_requests: MaxQueuedRequests = 128

    max_extractions: int = Field(
        default=64,
        ge=1,
        description="Extractions that a replica has under way; a further one gets a 503 at once. Fewer than "
        "`max_ongoing_requests`, so that results and probes are answered in a flood of them.",
    )

    max_body_bytes: int = Field(
        default=16 * 2**20, ge=1024, description="Largest request body, in bytes; a larger one gets a 413."
    )
    probe_s: float = Field(default=5.0, gt=0, description="Seconds that /readyz waits for each part of the system.")
    timeout_s: float = Field(
        default=300.0, gt=0, description="Seconds that one extraction may take; a slower one gets a 504."
    )
    max_mentions: int = Field(default=1000, ge=1, description="Most mentions that one request may ask for.")
