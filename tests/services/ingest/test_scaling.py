"""What the lag asks for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingPolicy

from services.ingest.scaling import LAG, LagPolicy


@pytest.mark.parametrize(
    ("reports", "replicas"), [({"a": 0}, 0), ({"a": 1}, 1), ({"a": 100}, 1), ({"a": 100, "b": 101}, 3)]
)
def test_a_replica_for_each_share_of_the_lag(reports: dict[str, float], replicas: int) -> None:
    context = SimpleNamespace(aggregated_metrics={LAG: reports}, target_num_replicas=7)
    assert LagPolicy(100)(context) == (replicas, {})


@pytest.mark.parametrize("metrics", [None, {}, {LAG: {}}])
def test_nothing_changes_before_the_first_report(metrics: dict[str, dict[str, float]] | None) -> None:
    context = SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=7)
    assert LagPolicy(100)(context) == (7, {})


def test_ray_carries_the_policy_to_its_controller() -> None:
    policy = AutoscalingPolicy(policy_function=LagPolicy, policy_kwargs={"lag_per_replica": 100})
    carried = policy.get_policy()(**policy.policy_kwargs)
    assert carried(SimpleNamespace(aggregated_metrics={LAG: {"a": 250}}, target_num_replicas=1)) == (3, {})
