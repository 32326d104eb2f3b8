"""Replica settings of every service: how many replicas Ray Serve keeps, and what each of them gets.

A service overrides a default by repeating the field with its annotated type, which keeps bounds and description.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MaxReplicas = Annotated[int, Field(ge=1, description="Most replicas; Serve adds them as load grows.")]
NumCpus = Annotated[
    float, Field(ge=0, description="Logical CPUs that Ray reserves for a replica; for placement, not a limit.")
]
MaxOngoingRequests = Annotated[int, Field(ge=1, description="Requests that a replica handles at once.")]
TargetOngoingRequests = Annotated[
    float, Field(gt=0, description="Requests in flight per replica above which Serve adds one.")
]


class ReplicaConfig(BaseSettings):
    """Base of the settings of a service. A subclass sets ``env_prefix``."""

    model_config = SettingsConfigDict(extra="ignore")

    min_replicas: int = Field(default=1, ge=1, description="Fewest replicas.")
    max_replicas: MaxReplicas = 4
    num_cpus: NumCpus = 0.25


class RequestReplicaConfig(ReplicaConfig):
    """Base of the settings of a service that answers requests and is scaled by how many are in flight."""

    max_ongoing_requests: MaxOngoingRequests = 32
    target_ongoing_requests: TargetOngoingRequests = 8.0
