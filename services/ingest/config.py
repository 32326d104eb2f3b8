"""Settings of the ingest service."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.replica_config import ReplicaConfig


class IngestConfig(ReplicaConfig):
    """Settings of the ingest service, prefix ``BIOBRACKET_INGEST_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_INGEST_")

    max_replicas: int = Field(
        default=1,
        ge=1,
        # When two members leave in quick succession, Tansu keeps the second as leader and nobody can join that group.
        description="Most replicas; any beyond the topic's partitions stay idle. Keep 1 with the embedded broker.",
    )
    lag_per_replica: int = Field(
        default=1000, ge=1, description="Consumer lag per replica, in documents, above which Serve adds one."
    )
    upscale_delay_s: float = Field(
        default=30.0, ge=0, description="Seconds that the lag must call for more replicas before Serve adds some."
    )
    downscale_delay_s: float = Field(
        default=600.0, ge=0, description="Seconds that the lag must call for fewer replicas before Serve stops some."
    )
    group: str = Field(default="biobracket", min_length=1, description="Kafka consumer group of all replicas.")
    session_s: float = Field(
        default=10.0,
        gt=0,
        description="Seconds without a sign of life after which a replica's partitions go to others. The broker bounds "
        "it; 6 with the embedded one.",
    )
    # After validation of session_s, which it is compared with.
    heartbeat_s: float = Field(
        default=1.0,
        gt=0,
        description="Seconds between signs of life to the group, at most a third of the session; a rebalance is "
        "noticed by the next one.",
    )
    instance: str = Field(
        default="",
        max_length=200,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Name for static membership, e.g. the pod's, which must be another one in each Ray cluster; the "
        "replica's rank is added. A replica that restarts within a session then takes its partitions back without a "
        "rebalance, and one that stops keeps them for a session. Empty: none, as with the embedded broker.",
    )
    deployment: str = Field(
        default="",
        max_length=200,
        description="Name of this deployment where several share the group, as while one Ray cluster takes over from "
        "another: then only the newest that is ready consumes, once the one before has finished. Another one in each "
        "Ray cluster. Empty: there is one deployment only.",
    )
    lease_s: float = Field(
        default=30.0,
        ge=15,
        description="Seconds after which a replica of another deployment that says nothing counts as dead.",
    )
    max_documents: int = Field(
        default=64, ge=1, description="Documents in flight per replica; consumption pauses at the limit."
    )
    max_bytes: int = Field(
        default=64 * 2**20,
        ge=1,
        description="Bytes of the documents in flight per replica; a larger document is processed alone.",
    )
    # On an idle stream a finished document waits half of this, on average, for its commit.
    poll_s: float = Field(default=0.25, gt=0, le=10, description="Seconds that one poll of Kafka waits for records.")
    commit_s: float = Field(
        default=0.2, gt=0, description="Seconds between offset commits, and between readings of the lag."
    )
    attempts: int = Field(
        default=5,
        ge=1,
        description="Attempts at a document that itself makes processing fail, before it is dead-lettered. "
        "Deaths of a process count once the document is alone in it. Failures of Kafka, Redis or the placement of "
        "replicas do not count: they are retried until they pass. Also fetches of a batch that cannot be read.",
    )
    breaker_run: int = Field(
        default=500,
        ge=0,
        description="Dead letters in a row that halt the group until `biobracket dead-letters resume`; 0: never.",
    )
    breaker_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of dead letters among the last 1,000 records of a replica above which the group halts; "
        "0: never.",
    )
    stalled_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds without a returning poll, or without progress while records wait and none is in flight, "
        "after which a replica is replaced.",
    )
    backoff_s: float = Field(default=0.2, gt=0, description="Seconds before the first retry; doubles with each one.")
    backoff_max_s: float = Field(default=15.0, gt=0, description="Longest wait before a retry, in seconds.")
    drain_s: float = Field(
        default=15.0, ge=0, description="Seconds that a stopping replica gives documents in flight to finish."
    )

    @field_validator("heartbeat_s")
    @classmethod
    def _beats_thrice_a_session(cls, value: float, info: ValidationInfo) -> float:
        session = info.data.get("session_s")  # absent where it is at fault itself
        if session is not None and value > session / 3:
            raise ValueError("must be at most a third of BIOBRACKET_INGEST_SESSION_S; lower it, or raise the session")
        return value
