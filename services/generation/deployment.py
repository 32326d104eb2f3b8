"""The generation service as a Ray Serve deployment."""

from __future__ import annotations

from ray import serve
from ray.serve.config import AutoscalingConfig

from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from services.generation.engines import load
from shared import logs
from shared.batching import Batcher
from shared.messages import Segment, TaggedLine
from shared.metrics import GENERATION_BATCH_SEGMENTS
from shared.ray_metrics import RayObserver
from shared.settings import settings

_CONFIG = GenerationConfig()


@serve.deployment(
    name="generation",
    ray_actor_options={"num_cpus": _CONFIG.num_cpus, "num_gpus": _CONFIG.num_gpus},
    max_ongoing_requests=_CONFIG.max_ongoing_requests,
    autoscaling_config=AutoscalingConfig(
        min_replicas=_CONFIG.min_replicas,
        max_replicas=_CONFIG.max_replicas,
        target_ongoing_requests=_CONFIG.target_ongoing_requests,
    ),
)
class Generation:
    """Tags segments with the language model. The only deployment that needs an accelerator, or the CPU's cores."""

    def __init__(self) -> None:
        logs.configure(settings())
        engine = load(settings(), _CONFIG)
        observe = RayObserver()
        self._batcher: Batcher[TagRequest, list[TaggedLine]] = Batcher(
            engine.tag,
            engine.tokens,
            batch_tokens=_CONFIG.batch_tokens,
            max_queued=_CONFIG.max_queued,
            full="generation: too many segments wait; send less or raise BIOBRACKET_GENERATION_MAX_QUEUED",
            observe=lambda segments, _: observe(GENERATION_BATCH_SEGMENTS, segments),
        )

    async def tag(self, segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
        """A line for each segment and type, segment by segment."""
        lines = await self._batcher.ask([TagRequest(segment, types) for segment in segments])
        return tuple(line for found in lines for line in found)

    async def ready(self) -> bool:
        """Whether the model is loaded: a replica answers only when it is."""
        return True
