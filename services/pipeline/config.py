"""Settings of the pipeline service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class PipelineConfig(BaseSettings):
    """Settings of the pipeline service, prefix ``BIOBRACKET_PIPELINE_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_PIPELINE_", extra="ignore")

    min_replicas: int = Field(default=1, ge=1, description="Fewest replicas.")
    max_replicas: int = Field(default=4, ge=1, description="Most replicas; Serve adds them as requests in flight grow.")
    num_cpus: float = Field(default=0.25, ge=0, description="CPU share that Ray reserves for a replica.")
    max_ongoing_requests: int = Field(default=64, ge=1, description="Documents that a replica handles at once.")
    target_ongoing_requests: float = Field(
        default=32.0, gt=0, description="Documents in flight a replica, above which Serve adds one."
    )
    max_characters: int = Field(
        default=20_000_000, ge=1, description="Longest text, in characters; a longer one is refused."
    )
    max_units: int = Field(
        default=160,
        ge=8,
        le=200,  # segment and tagged line together stay below the base model's window of 512 tokens
        description="Longest segment, in estimated model tokens.",
    )
    chunk_segments: int = Field(
        default=64, ge=1, description="Segments of a document that go from service to service together."
    )
    request_segments: int = Field(
        default=4, ge=1, description="Segments that go to one replica of generation together; the others share a chunk."
    )
    requests_in_flight: int = Field(
        default=1024,
        ge=1,
        description="Requests that a replica has in generation at once; the others wait here and go where there is "
        "room first. `biobracket up` sets 8 for each replica of generation on a CPU.",
    )
    local_cache_mib: int = Field(
        default=64,
        ge=0,
        description="Memory of a replica for decisions on segments, in MiB, asked before Redis; 0: none.",
    )
    state_s: float = Field(
        default=1.0,
        gt=0,
        description="Seconds between two questions to selection whether its index changed; until then cached decisions "
        "count.",
    )
    chunks_in_flight: int = Field(
        default=4, ge=1, description="Requests of one document that are under way at once, so that others get a turn."
    )
