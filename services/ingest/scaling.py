"""How many replicas the lag asks for. Ray Serve carries this module into its controller, so it imports little."""

from __future__ import annotations

from math import ceil
from typing import Any

LAG = "lag"


class LagPolicy:
    """A Ray Serve autoscaling policy: a replica for each ``lag_per_replica`` documents that wait.

    Serve itself keeps the answer between the fewest and the most replicas and delays it, so that a short burst does
    not rebalance the group.
    """

    def __init__(self, lag_per_replica: int) -> None:
        self._lag_per_replica = lag_per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """``context``: a ``ray.serve.config.AutoscalingContext`` with the metric ``lag`` of every replica."""
        reports = (context.aggregated_metrics or {}).get(LAG, {})
        if not reports:  # no replica has reported yet
            return context.target_num_replicas, {}
        return ceil(sum(reports.values()) / self._lag_per_replica), {}
