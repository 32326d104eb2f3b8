from __future__ import annotations

from typing import Any

import pytest
from ray.util import metrics

from shared.runtime.metrics import ENTITIES, LAG, METRICS, STAGE_SECONDS
from shared.runtime.ray_metrics import RayObserver

OF_RAY = {
    "counter": (metrics.Counter, "inc"),
    "gauge": (metrics.Gauge, "set"),
    "histogram": (metrics.Histogram, "observe"),
}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Records what reaches Ray: name, value, tags."""
    told: list[tuple[Any, ...]] = []
    for kind, method in OF_RAY.values():
        monkeypatch.setattr(kind, method, lambda self, value, tags=None: told.append((self.info["name"], value, tags)))
    return told


def test_every_metric_becomes_a_ray_metric_with_description_and_tags() -> None:
    made = RayObserver()._metrics
    assert set(made) == {metric.name for metric in METRICS}
    for metric in METRICS:
        assert isinstance(made[metric.name], OF_RAY[metric.kind][0])
        assert made[metric.name].info["description"] == metric.description
        assert tuple(made[metric.name].info["tag_keys"]) == metric.tags


def test_observations_reach_ray_by_kind(seen: list[tuple[Any, ...]]) -> None:
    observe = RayObserver()
    observe(ENTITIES, 3, {"type": "protein"})
    observe(ENTITIES, 0, {"type": "dna"})  # Ray refuses it
    observe(LAG, 0)
    observe(STAGE_SECONDS, 0.5, {"stage": "parsing"})
    assert seen == [
        (ENTITIES.name, 3, {"type": "protein"}),
        (LAG.name, 0, {}),
        (STAGE_SECONDS.name, 0.5, {"stage": "parsing"}),
    ]
