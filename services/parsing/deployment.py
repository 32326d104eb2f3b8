"""The Ray Serve binding of parsing."""

from __future__ import annotations

import asyncio

from ray import serve
from ray.serve.config import AutoscalingConfig

from services.parsing.brackets import parse_lines
from services.parsing.config import ParsingConfig
from shared.messages import Parsed, TaggedLine
from shared.runtime.logs import configure
from shared.runtime.metrics import REPAIRS
from shared.runtime.ray_metrics import RayObserver
from shared.settings import settings

_CONFIG = ParsingConfig()


@serve.deployment(
    name="parsing",
    ray_actor_options={"num_cpus": _CONFIG.num_cpus},
    max_ongoing_requests=_CONFIG.max_ongoing_requests,
    autoscaling_config=AutoscalingConfig(
        min_replicas=_CONFIG.min_replicas,
        max_replicas=_CONFIG.max_replicas,
        target_ongoing_requests=_CONFIG.target_ongoing_requests,
    ),
)
class Parsing:
    """Makes candidates of tagged lines."""

    def __init__(self) -> None:
        configure(settings())
        self._observe = RayObserver()

    async def parse(self, lines: tuple[TaggedLine, ...]) -> Parsed:
        """See :func:`services.parsing.brackets.parse_lines`; in a thread, so that probes are answered meanwhile."""
        parsed = await asyncio.to_thread(parse_lines, lines)
        for kind, count in parsed.repairs.items():
            self._observe(REPAIRS, count, {"kind": kind})
        return parsed
