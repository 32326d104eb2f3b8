"""Settings of the query service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class QueryConfig(BaseSettings):
    """Settings of the query service, prefix ``BIOBRACKET_QUERY_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_QUERY_", extra="ignore")

    min_replicas: int = Field(default=1, ge=1, description="Fewest replicas.")
    max_replicas: int = Field(default=2, ge=1, description="Most replicas; Serve adds them as HTTP load grows.")
    num_cpus: float = Field(default=0.5, ge=0, description="CPU share that Ray reserves for a replica.")
    max_ongoing_requests: int = Field(default=64, ge=1, description="Requests that a replica handles at once.")
    max_body_bytes: int = Field(
        default=16 * 2**20, ge=1024, description="Largest request body, in bytes; a larger one is answered with 413."
    )
    target_ongoing_requests: float = Field(
        default=16.0, gt=0, description="Requests in flight a replica, above which Serve adds one."
    )
    probe_s: float = Field(
        default=5.0, gt=0, description="Seconds that /readyz waits for each part of the system to answer."
    )
    timeout_s: float = Field(
        default=300.0, gt=0, description="Seconds that one extraction may take before it is answered with 504."
    )
    max_mentions: int = Field(default=1000, ge=1, description="Most mentions that one request may ask for.")
