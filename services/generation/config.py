"""Settings of generation, prefix ``BIOBRACKET_GENERATION_``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GenerationConfig(BaseSettings):
    """How segments are tagged, and what a replica is given."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_GENERATION_", extra="ignore", frozen=True)

    engine: Literal["auto", "copy", "vllm"] = Field(
        default="auto",
        description="What runs the model: `copy`, or `vllm` (installed by itself) for a base that is too large for one "
        "device; `auto` takes `copy` where the base fits.",
    )
    tensor_parallel: int = Field(default=1, ge=1, description="vllm: GPUs that share the weights of one replica.")
    speculate: int = Field(
        default=0,
        ge=0,
        description="vllm: tokens guessed ahead from the prompt's n-grams. vLLM cannot hold the model to the text "
        "then: what it says is aligned by parsing, and has no confidence of its own; 0 guesses none.",
    )
    pass_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens that a pass of one thread is filled up to with new segments; 0 takes 512 where `copy` runs "
        "on a CPU, else 8192.",
    )
    cache_tokens: int = Field(
        default=8192,
        ge=1,
        description="copy: tokens whose keys and values one thread may keep before it takes up no more segments; "
        "bounds memory.",
    )
    dtype: Literal["auto", "int8", "bfloat16", "float32"] = Field(
        default="auto",
        description="Number format of the weights; `auto` is int8 on a CPU that multiplies it, else bfloat16 where the "
        "device does.",
    )
    candidate_floor: float = Field(
        default=0.2,
        gt=0.0,
        le=1.0,
        description="Probability from which a span that greedy decoding did not take is a candidate all the same.",
    )
    branch_pieces: int = Field(
        default=16, ge=1, description="Length, in pieces, up to which a mention beyond the greedy ones is looked for."
    )
    lookahead: int = Field(
        default=0,
        ge=0,
        description="Tokens of a line that one pass checks: a few waste little on what a correction undoes, many need "
        "fewer passes; 0 takes 6 on a CPU and 256 on a GPU.",
    )
    max_queued: int = Field(
        default=4096, ge=1, description="Segments that may wait or be under way in a replica; more are put off."
    )

    min_replicas: int = Field(default=1, ge=1, description="Replicas kept when idle.")
    max_replicas: int = Field(default=1, ge=1, description="Replicas at most.")
    target_ongoing_requests: int = Field(default=32, ge=1, description="Requests in flight a replica is sized for.")
    max_ongoing_requests: int = Field(default=256, ge=1, description="Requests in flight a replica accepts.")
    num_cpus: float = Field(default=1.0, ge=0.0, description="Logical CPUs of a replica, for placement.")
    num_gpus: float = Field(default=0.0, ge=0.0, description="GPUs of a replica; a fraction shares one; 0 runs on CPU.")
    threads: int = Field(
        default=0,
        ge=0,
        description="Threads on a CPU, for segments side by side or, where there are too few of them, for matrix "
        "products; 0 takes every core.",
    )
