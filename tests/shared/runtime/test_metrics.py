"""Names are unique and valid for Ray and Prometheus."""

from __future__ import annotations

import re

from shared.runtime import metrics
from shared.runtime.metrics import METRICS, Metric


def test_every_metric_is_listed_once() -> None:
    assert sorted(metric.name for metric in METRICS) == sorted({metric.name for metric in METRICS})
    assert set(METRICS) == {value for value in vars(metrics).values() if isinstance(value, Metric)}


def test_names_and_tags_are_valid_for_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"biobracket(_[a-z]+)+", metric.name)
        assert not metric.name.endswith("_total")  # Ray adds it to counters
        assert all(re.fullmatch(r"[a-z_]+", tag) for tag in metric.tags)
        assert metric.description.endswith(".")


def test_only_histograms_have_bounds_and_they_rise() -> None:
    for metric in METRICS:
        assert bool(metric.boundaries) is (metric.kind == "histogram")
        assert list(metric.boundaries) == sorted(set(metric.boundaries))
        assert not metric.name.endswith("_seconds") or metric.kind == "histogram"
