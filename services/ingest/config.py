"""Settings of the ingest service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class IngestConfig(BaseSettings):
    """Settings of the ingest service, prefix ``BIOBRACKET_INGEST_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_INGEST_", extra="ignore")

    min_replicas: int = Field(default=1, ge=1, description="Fewest replicas.")
    max_replicas: int = Field(
        default=1,
        ge=1,
        # Tansu keeps a member as leader that left right after another one, and nobody can join that group any more.
        description="Most replicas; more than the topic has partitions would stand idle. One with the embedded broker.",
    )
    lag_per_replica: int = Field(
        default=1000, ge=1, description="Documents waiting in Kafka a replica, above which Serve adds one."
    )
    upscale_delay_s: float = Field(
        default=30.0, ge=0, description="Seconds that the lag must ask for more replicas before Serve adds some."
    )
    downscale_delay_s: float = Field(
        default=600.0, ge=0, description="Seconds that the lag must ask for fewer replicas before Serve stops some."
    )
    num_cpus: float = Field(default=0.25, ge=0, description="CPU share that Ray reserves for a replica.")
    group: str = Field(default="biobracket", min_length=1, description="Kafka consumer group of all replicas.")
    max_documents: int = Field(default=64, ge=1, description="Documents in flight a replica; beyond, reading pauses.")
    max_bytes: int = Field(
        default=64 * 2**20,
        ge=1,
        description="Bytes of the documents in flight a replica; a larger document goes alone.",
    )
    # Half of it is how long a finished document waits for its commit on an idle stream.
    poll_s: float = Field(default=0.25, gt=0, le=10, description="Seconds that one read of Kafka waits for records.")
    commit_s: float = Field(default=0.2, gt=0, description="Seconds between commits, and between readings of the lag.")
    attempts: int = Field(
        default=5,
        ge=1,
        description="How often a document is tried whose processing fails by itself; then it is dead-lettered. "
        "Failures of Kafka, Redis or a dead actor do not count: they are retried until they are over.",
    )
    backoff_s: float = Field(default=0.2, gt=0, description="Seconds before the first retry; doubled each time.")
    backoff_max_s: float = Field(default=15.0, gt=0, description="Longest wait before a retry, in seconds.")
    drain_s: float = Field(
        default=15.0, ge=0, description="Seconds that a stopping replica lets documents in flight finish."
    )
