"""Settings of the selection service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class SelectionConfig(BaseSettings):
    """Settings of the selection service, prefix ``BIOBRACKET_SELECTION_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_SELECTION_", extra="ignore")

    min_replicas: int = Field(default=1, ge=1, description="Fewest replicas.")
    max_replicas: int = Field(default=4, ge=1, description="Most replicas; Serve adds them as candidates queue.")
    num_cpus: float = Field(default=0.25, ge=0, description="CPU share that Ray reserves for a replica.")
    num_gpus: float = Field(
        default=0.0, ge=0, description="GPU share of a replica; selection by confidence alone needs none."
    )
    threads: int = Field(default=0, ge=0, description="Threads of the span encoder on a CPU; 0: one a core.")
    dtype: Literal["auto", "int8", "bfloat16", "float32"] = Field(
        default="auto", description="Number format of the span encoder, as for generation."
    )
    neighbours: int = Field(default=16, ge=1, description="Nearest exemplars that have a vote on a candidate.")
    near_copy: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the pieces around a mention, five on either side, that must be the same where what a "
        "reviewer said of it counts for the same words elsewhere.",
    )
    evidence: int = Field(default=0, ge=0, description="Nearest exemplars that an entity carries as evidence.")
    batch_tokens: int = Field(default=4096, ge=64, description="Tokens of a pass of the span encoder.")
    max_queued: int = Field(default=4096, ge=1, description="Documents that may wait in a replica.")
    max_ongoing_requests: int = Field(default=32, ge=1, description="Requests that a replica handles at once.")
    target_ongoing_requests: float = Field(
        default=8.0, gt=0, description="Requests in flight a replica, above which Serve adds one."
    )
