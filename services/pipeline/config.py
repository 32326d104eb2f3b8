"""Settings of the pipeline service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.replica_config import MaxOngoingRequests, MaxQueuedRequests, RequestReplicaConfig, TargetOngoingRequests


class PipelineConfig(RequestReplicaConfig):
    """Settings of the pipeline service, prefix ``BIOBRACKET_PIPELINE_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_PIPELINE_")

    max_ongoing_requests: MaxOngoingRequests = 64
    target_ongoing_requests: TargetOngoingRequests = 32.0
    max_queued_requests: MaxQueuedRequests = 128

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
        default=64, ge=1, description="Segments of a document that are passed between services together."
    )
    request_segments: int = Field(
        default=4,
        ge=1,
        description="Segments in one request to generation; the requests of a chunk go to different replicas.",
    )
    requests_in_flight: int = Field(
        default=1024,
        ge=1,
        description="Requests that a replica has in flight to generation; the others wait here and go to whichever "
        "replica has room first. `biobracket up` sets 8 per replica of generation on a CPU.",
    )
    local_cache_mib: int = Field(
        default=64,
        ge=0,
        description="MiB of a replica's in-memory cache of decisions on segments, in front of Redis; 0 disables it.",
    )
    state_s: float = Field(
        default=1.0,
        gt=0,
        description="Seconds between checks whether selection's index changed; cached decisions hold until then.",
    )
    chunks_in_flight: int = Field(
        default=4, ge=1, description="Chunks of one document in flight at once, so that others get a turn."
    )
