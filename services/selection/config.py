"""Settings of the selection service."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.replica_config import ComputeReplicaConfig, NumCpus


class SelectionConfig(ComputeReplicaConfig):
    """Settings of the selection service, prefix ``BIOBRACKET_SELECTION_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_SELECTION_")

    num_cpus: NumCpus = 0.25
    num_gpus: float = Field(
        default=0.0, ge=0, description="GPUs of a replica; a fraction shares one. Without a span encoder it needs none."
    )
    dtype: Literal["auto", "int8", "bfloat16", "float32"] = Field(
        default="auto", description="Number format of the span encoder's weights; `auto` as for generation."
    )
    neighbours: int = Field(default=16, ge=1, description="Nearest exemplars that vote on a candidate.")
    near_copy: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="How similar a candidate's context must be to that of feedback on the same words for it to apply: "
        "the fraction shared of the five pieces on either side.",
    )
    evidence: int = Field(default=0, ge=0, description="Nearest exemplars that an entity carries as evidence.")
    batch_tokens: int = Field(default=4096, ge=64, description="Tokens in one forward pass of the span encoder.")
    max_queued: int = Field(default=4096, ge=1, description="Documents that may wait in a replica.")
