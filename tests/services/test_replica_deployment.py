"""What Ray Serve is told of a service."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingPolicy

from services.replica_config import ReplicaConfig, RequestReplicaConfig
from services.replica_deployment import deployment


class Service:
    """A service that does nothing."""


def test_requests_scale_a_service() -> None:
    config = RequestReplicaConfig(
        min_replicas=2, max_replicas=5, num_cpus=0.5, max_ongoing_requests=7, target_ongoing_requests=3.0
    )
    made: Any = deployment("service", config, num_gpus=0.25)(Service)
    assert (made.name, made.func_or_class) == ("service", Service)
    assert made.ray_actor_options == {"num_cpus": 0.5, "num_gpus": 0.25}
    assert made.max_ongoing_requests == 7
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3.0)


def scaled(**_: Any) -> None:
    """A policy."""


def test_a_policy_scales_a_service_and_other_options_are_passed_on() -> None:
    policy = AutoscalingPolicy(policy_function=scaled)
    scaling = {"policy": policy, "upscale_delay_s": 7.0}
    made: Any = deployment("service", ReplicaConfig(), scaling=scaling, graceful_shutdown_timeout_s=42.0)(Service)
    assert made.ray_actor_options == {"num_cpus": 0.25}
    assert made._deployment_config.graceful_shutdown_timeout_s == 42.0
    given = made._deployment_config.autoscaling_config
    assert (given.policy.policy_function, given.upscale_delay_s) == (policy.policy_function, 7.0)
