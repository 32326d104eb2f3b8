"""Reports the metrics of :mod:`shared.runtime.metrics` to Ray."""

from __future__ import annotations

from collections.abc import Mapping

from ray.util import metrics

from shared.runtime.metrics import METRICS, Metric


class RayObserver:
    """A :class:`shared.runtime.metrics.Observe` that reports to Ray, which exports to Prometheus."""

    def __init__(self) -> None:
        self._metrics: dict[str, metrics.Metric] = {}
        for metric in METRICS:
            self._metrics[metric.name] = _made(metric)

    def __call__(self, metric: Metric, value: float, tags: Mapping[str, str] | None = None) -> None:
        made = self._metrics[metric.name]
        labels = dict(tags or {})
        if isinstance(made, metrics.Counter):
            if value > 0:  # Ray rejects increments of 0
                made.inc(value, labels)
        elif isinstance(made, metrics.Gauge):
            made.set(value, labels)
        elif isinstance(made, metrics.Histogram):
            made.observe(value, labels)


def _made(metric: Metric) -> metrics.Metric:
    if metric.kind == "counter":
        return metrics.Counter(metric.name, metric.description, metric.tags)
    if metric.kind == "gauge":
        return metrics.Gauge(metric.name, metric.description, metric.tags)
    return metrics.Histogram(metric.name, metric.description, list(metric.boundaries), metric.tags)
