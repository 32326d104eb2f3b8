"""Settings of generation, prefix ``BIOBRACKET_GENERATION_``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.replica_config import (
    ComputeReplicaConfig,
    MaxOngoingRequests,
    MaxQueuedRequests,
    TargetOngoingRequests,
)


class GenerationConfig(ComputeReplicaConfig):
    """How segments are tagged, and the resources of a replica."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_GENERATION_", frozen=True)

    engine: Literal["auto", "copy", "vllm"] = Field(
        default="auto",
        description="Inference engine: `copy`, or `vllm` (a separate install) for a base model too large for one "
        "device; `auto` takes `copy` if the base model fits.",
    )
    tensor_parallel: int = Field(default=1, ge=1, description="vllm: GPUs across which one replica shards the weights.")
    speculate: int = Field(
        default=0,
        ge=0,
        description="vllm: draft tokens per step, from the prompt's n-grams. vLLM cannot constrain decoding to the "
        "text at the same time: the output is aligned by parsing and has no confidence of its own; 0 drafts none.",
    )
    pass_tokens: int = Field(
        default=0,
        ge=0,
        description="Token budget of a forward pass of one thread, up to which waiting segments join it; 0 takes 512 "
        "for `copy` on a CPU, else 8192.",
    )
    cache_tokens: int = Field(
        default=8192,
        ge=1,
        description="copy: tokens in the key-value cache of one thread above which it starts no more segments; bounds "
        "memory.",
    )
    dtype: Literal["auto", "int8", "bfloat16", "float32"] = Field(
        default="auto",
        description="Number format of the weights; `auto` takes bfloat16 on a GPU, and on a CPU what it multiplies "
        "fastest.",
    )
    candidate_floor: float = Field(
        default=0.2,
        gt=0.0,
        le=1.0,
        description="Probability at which a span that greedy decoding did not take still becomes a candidate.",
    )
    branch_pieces: int = Field(
        default=16, ge=1, description="Longest mention, in pieces, that is searched for beyond the greedy ones."
    )
    lookahead: int = Field(
        default=0,
        ge=0,
        description="Draft tokens of a line that one pass verifies: a short draft wastes less when part of it is "
        "rejected, a long one needs fewer passes; 0 takes 6 on a CPU and 256 on a GPU.",
    )
    max_queued: int = Field(
        default=4096,
        ge=1,
        description="Segments that may be waiting or running in a replica; further ones are rejected, and retried.",
    )

    max_ongoing_requests: MaxOngoingRequests = 256
    target_ongoing_requests: TargetOngoingRequests = 16.0
    max_queued_requests: MaxQueuedRequests = 1024
    num_gpus: float = Field(
        default=0.0,
        ge=0.0,
        validate_default=True,
        description="GPUs of a replica, at least `tensor_parallel` where that is more than 1; a fraction shares one; 0 "
        "runs on the CPU.",
    )

    @field_validator("num_gpus")
    @classmethod
    def _has_one_for_each_shard(cls, value: float, info: ValidationInfo) -> float:
        shards = info.data.get("tensor_parallel", 1)  # absent where it is at fault itself
        if shards > 1 and value < shards:
            raise ValueError(f"must be at least BIOBRACKET_GENERATION_TENSOR_PARALLEL, {shards}; raise it")
        return value
