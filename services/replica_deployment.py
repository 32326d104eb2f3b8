"""The Ray Serve deployment of a service, from its replica settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ray import serve
from ray.serve import Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from services.replica_config import ReplicaConfig, RequestReplicaConfig

RETRY_AFTER_S = 5
"""Seconds after which a client that was refused may ask again."""


def deployment(
    name: str,
    config: ReplicaConfig,
    *,
    num_gpus: float | None = None,
    scaling: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Callable[[type], Deployment]:
    """A class decorator: ``serve.deployment`` with the replicas, resources and autoscaling of ``config``.

    ``scaling``: further fields of the ``AutoscalingConfig``; ``options`` are passed on to ``serve.deployment``.
    """
    resources: dict[str, Any] = {"num_cpus": config.reserved_cpus}
    if config.resources:
        resources["resources"] = dict(config.resources)
    if num_gpus is not None:
        resources["num_gpus"] = num_gpus
    fields: dict[str, Any] = {"min_replicas": config.min_replicas, "max_replicas": config.max_replicas, **scaling}
    if isinstance(config, RequestReplicaConfig):
        fields["target_ongoing_requests"] = config.target_ongoing_requests
        options["max_ongoing_requests"] = config.max_ongoing_requests
        options["max_queued_requests"] = config.max_queued_requests
        options["backpressure_config"] = BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S)
    decorator: Callable[[type], Deployment] = serve.deployment(
        name=name, ray_actor_options=resources, autoscaling_config=AutoscalingConfig(**fields), **options
    )
    return decorator
