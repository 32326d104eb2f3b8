"""The generation service as a Ray Serve deployment."""

from __future__ import annotations

import asyncio

from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from services.generation.engines import load
from services.replica_deployment import deployment
from shared.errors import Overloaded
from shared.messages import Segment, TaggedLine
from shared.runtime import logs
from shared.runtime.cpus import give_way
from shared.runtime.metrics import GENERATION_SEGMENTS
from shared.runtime.ray_metrics import RayObserver
from shared.settings import settings

_CONFIG = GenerationConfig()


@deployment("generation", _CONFIG, num_gpus=_CONFIG.num_gpus)
class Generation:
    """Tags segments with the language model. The one deployment that needs an accelerator or all CPU cores."""

    def __init__(self) -> None:
        logs.configure(settings())
        give_way()
        self._engine = load(settings(), _CONFIG.model_copy(update={"threads": _CONFIG.replica_threads}))
        self._observe = RayObserver()
        self._under_way = 0

    async def tag(self, segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
        """A line for each segment, in order."""
        if self._under_way and self._under_way + len(segments) > _CONFIG.max_queued:
            raise Overloaded(
                "generation: too many segments are waiting; send fewer or raise BIOBRACKET_GENERATION_MAX_QUEUED"
            )
        self._count(len(segments))
        try:
            asked = [self._engine.submit(TagRequest(segment, types)) for segment in segments]
            return tuple(await asyncio.gather(*map(asyncio.wrap_future, asked)))
        finally:
            self._count(-len(segments))

    def _count(self, more: int) -> None:
        self._under_way += more
        self._observe(GENERATION_SEGMENTS, self._under_way)

    async def ready(self) -> bool:
        """True: a replica answers only after its model has loaded."""
        return True
