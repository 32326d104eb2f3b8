"""Replica settings of every service: how many replicas Ray Serve keeps, and what each of them gets.

A service overrides a default by repeating the field with its annotated type, which keeps bounds and description.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MinReplicas = Annotated[int, Field(ge=1, description="Fewest replicas.")]
MaxReplicas = Annotated[int, Field(ge=1, description="Most replicas; Serve adds them as load grows.")]
NumCpus = Annotated[
    float, Field(ge=0, description="Logical CPUs that Ray reserves for a replica; for placement, not a limit.")
]
MaxOngoingRequests = Annotated[int, Field(ge=1, description="Requests that a replica handles at once.")]
TargetOngoingRequests = Annotated[
    float, Field(gt=0, description="Requests in flight per replica above which Serve adds one.")
]

MaxQueuedRequests = Annotated[
    int,
    Field(
        ge=1,
        description="Requests that each caller may have waiting for a replica; further ones are refused at once.",
    ),
]
Threads = Annotated[
    int,
    Field(ge=0, description="CPU threads of a replica; 0 takes one for each whole CPU of its `…_NUM_CPUS`."),
]


class ReplicaConfig(BaseSettings):
    """Base of the settings of a service. A subclass sets ``env_prefix``."""

    model_config = SettingsConfigDict(extra="ignore")

    min_replicas: MinReplicas = 1
    max_replicas: MaxReplicas = 4
    # With generation's 1 and selection's 0.25, one replica of each service fits on two cores.
    num_cpus: NumCpus = 0.1
    resources: dict[str, float] = Field(
        default_factory=dict,
        description="JSON object of custom Ray resources that a replica reserves, which places it on the nodes that "
        "have them.",
    )

    @property
    def reserved_cpus(self) -> float:
        """Logical CPUs that Ray reserves for a replica."""
        return self.num_cpus


class RequestReplicaConfig(ReplicaConfig):
    """Base of the settings of a service that answers requests and is scaled by how many are in flight."""

    max_ongoing_requests: MaxOngoingRequests = 32
    target_ongoing_requests: TargetOngoingRequests = 8.0
    max_queued_requests: MaxQueuedRequests = 256


class ComputeReplicaConfig(RequestReplicaConfig):
    """Base of the settings of a service that computes with threads of its own."""

    num_cpus: NumCpus = 1.0
    threads: Threads = 0

    @property
    def reserved_cpus(self) -> float:
        """The CPUs given; at least those of the threads, where only these are: Ray must not place more on a node than
        it can run.
        """
        return self.num_cpus if "num_cpus" in self.model_fields_set else max(self.num_cpus, float(self.threads))

    @property
    def replica_threads(self) -> int:
        """The threads given, else as many as whole CPUs are reserved, at least one."""
        return self.threads or max(1, int(self.num_cpus))
