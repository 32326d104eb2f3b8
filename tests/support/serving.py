"""Serve's own autoscaler and placement, without a cluster: the code's own deployments, and a clock of the test's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve import autoscaling_policy
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingContext

from services.generation.deployment import Generation
from services.ingest.deployment import Ingest
from services.parsing.deployment import Parsing
from services.pipeline.deployment import PipelineService
from services.query.deployment import Query
from services.selection.deployment import Selection

DEPLOYMENTS: dict[str, Any] = {
    made.name: made for made in (Generation, Ingest, Parsing, PipelineService, Query, Selection)
}

TICK_S = 1.0


class Autoscaler:
    """The replicas that Serve wants of a deployment, second by second. Time passes by :meth:`tick` alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, **limits: int) -> None:
        """``limits``: ``max_replicas`` or ``min_replicas``, in place of the deployment's."""
        self.config = DEPLOYMENTS[name]._deployment_config.autoscaling_config.model_copy(update=limits)
        self.replicas = self.config.min_replicas
        self._name = name
        self._policy = autoscaling_policy._apply_autoscaling_config(_resolve_policy_callable(self.config.policy))
        self._state: dict[str, Any] = {}
        self._now = 1000.0
        self._monkeypatch = monkeypatch

    def tick(self, requests: float, metrics: Mapping[str, Mapping[str, float]] | None = None) -> int:
        """A second with so many requests under way or waiting, and what the replicas report of themselves."""
        self._now += TICK_S
        context = AutoscalingContext(
            deployment_id=DeploymentID(self._name),
            deployment_name=self._name,
            app_name="biobracket",
            current_num_replicas=self.replicas,
            target_num_replicas=self.replicas,
            running_replicas=[],
            total_num_requests=requests,
            total_queued_requests=0.0,
            aggregated_metrics=metrics,  # type: ignore[arg-type]  # replicas by name instead of by identifier
            raw_metrics=None,
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self._now,
            config=self.config,
        )
        with self._monkeypatch.context() as patched:
            patched.setattr(autoscaling_policy, "time", SimpleNamespace(time=lambda: self._now))
            wanted, self._state = self._policy(context)
        self.replicas = max(self.config.min_replicas, min(self.config.max_replicas, wanted))
        return self.replicas

    def settle(self, requests: float, metrics: Mapping[str, Mapping[str, float]] | None = None) -> int:
        """The replicas when the load has stayed the same for an hour."""
        for _ in range(3600):
            self.tick(requests, metrics)
        return self.replicas


def closed_loop(generation: Autoscaler, window: int, *, elsewhere_s: float, per_replica: float) -> list[int]:
    """The replicas of generation over half an hour in which ingest keeps ``window`` one-segment documents in flight.

    A document spends ``elsewhere_s`` seconds outside generation, of which a replica answers ``per_replica`` a second.
    """
    seen = []
    waiting = float(window)
    for _ in range(1800):
        # Little's law, both ways: what generation answers, and what is then elsewhere.
        answered = min(generation.replicas * per_replica, window / elsewhere_s)
        waiting += 0.5 * (window - answered * elsewhere_s - waiting)
        seen.append(generation.tick(waiting))
    return seen


def fits(sizes: Iterable[float], nodes: Iterable[float]) -> bool:
    """Whether actors that reserve so many CPUs each find room on nodes that have so many: the largest first."""
    free = list(nodes)
    for size in sorted(sizes, reverse=True):
        place = next((i for i, room in enumerate(free) if room >= size), None)
        if place is None:
            return False
        free[place] -= size
    return True
