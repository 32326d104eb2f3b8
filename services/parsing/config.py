"""Settings of the parsing service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ParsingConfig(BaseSettings):
    """Settings of the parsing service, prefix ``BIOBRACKET_PARSING_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_PARSING_", extra="ignore")

    min_replicas: int = Field(default=1, ge=1, description="Fewest replicas.")
    max_replicas: int = Field(default=4, ge=1, description="Most replicas; Serve adds them as requests in flight grow.")
    num_cpus: float = Field(default=0.25, ge=0, description="CPU share that Ray reserves for a replica.")
    max_ongoing_requests: int = Field(default=32, ge=1, description="Requests that a replica handles at once.")
    target_ongoing_requests: float = Field(
        default=8.0, gt=0, description="Requests in flight a replica, above which Serve adds one."
    )
