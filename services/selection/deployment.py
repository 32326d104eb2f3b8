"""The Ray Serve binding of selection."""

from __future__ import annotations

import asyncio

from ray import serve
from ray.serve.config import AutoscalingConfig

from services.selection.confidence import ConfidenceSelector
from services.selection.config import SelectionConfig
from services.selection.selector import Selector
from shared.adapters import adapter_folder
from shared.calibration import Calibration
from shared.logs import configure
from shared.messages import Candidate, Entity
from shared.settings import settings

_CONFIG = SelectionConfig()


@serve.deployment(
    name="selection",
    ray_actor_options={"num_cpus": _CONFIG.num_cpus, "num_gpus": _CONFIG.num_gpus},
    max_ongoing_requests=_CONFIG.max_ongoing_requests,
    autoscaling_config=AutoscalingConfig(
        min_replicas=_CONFIG.min_replicas,
        max_replicas=_CONFIG.max_replicas,
        target_ongoing_requests=_CONFIG.target_ongoing_requests,
    ),
)
class Selection:
    """Decides which candidates of a document are entities, by the calibration beside the adapter in force."""

    def __init__(self) -> None:
        configure(settings())
        self._selector: Selector = ConfidenceSelector(Calibration.for_adapter(adapter_folder(settings())))

    async def select(self, candidates: tuple[Candidate, ...]) -> tuple[Entity, ...]:
        """See :class:`services.selection.selector.Selector`; in a thread, so that probes are answered meanwhile."""
        return await asyncio.to_thread(self._selector.select, candidates)
