"""The pipeline service as a Ray Serve deployment."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle

from services.handles import answer
from services.pipeline.assembly import Pipeline
from services.pipeline.cache import LocalCache
from services.pipeline.config import PipelineConfig
from services.pipeline.removal_watch import RemovalWatch
from services.pipeline.selection_state import SelectionWatch
from services.replica_deployment import deployment
from shared.backends.feedback_store import FeedbackStore
from shared.backends.result_store import ResultStore
from shared.messages import Basis, Candidate, Document, Extraction, Parsed, Segment, Selected, TaggedLine
from shared.model.folders import adapter_folder
from shared.model.revision import generator_revision
from shared.model.scheme import asked_together, guidelines_of
from shared.runtime import logs
from shared.runtime.metrics import ENTITIES, REFUSED, SEGMENTS, STAGE_SECONDS
from shared.runtime.ray_metrics import RayObserver
from shared.selection.selector_folder import model_revision
from shared.settings import settings

_CONFIG = PipelineConfig()


@deployment("pipeline", _CONFIG)
class PipelineService:
    """Extracts the entities of documents. The arguments are the handles of the services that it calls."""

    def __init__(
        self, generation: DeploymentHandle[Any], parsing: DeploymentHandle[Any], selection: DeploymentHandle[Any]
    ) -> None:
        logs.configure(settings("pipeline"))
        self._generation = generation
        self._parsing = parsing
        self._selection = selection
        # Serve does not count requests on their way to a replica: in a burst, one can get twice the share of others.
        self._turns = asyncio.Semaphore(_CONFIG.requests_in_flight)
        self._store = ResultStore.from_settings(settings("pipeline"))
        self._feedback = FeedbackStore.from_settings(settings("pipeline"))
        self._watch = SelectionWatch(self._basis, self._feedback.version, _CONFIG.state_s)
        local = LocalCache(_CONFIG.local_cache_mib * 2**20, settings("pipeline").segment_ttl)
        removals = RemovalWatch(self._store.removals, local, _CONFIG.state_s)
        loop = asyncio.get_running_loop()
        self._watching = [loop.create_task(watch) for watch in (self._watch.run(), removals.run())]
        self._observe = RayObserver()
        self._pipeline = Pipeline(
            generate=self._generate,
            parse=self._parse,
            select=self._select,
            cache=self._store,
            model_revision=model_revision(settings("pipeline")),
            generator_revision=generator_revision(settings("pipeline")),
            config=_CONFIG,
            group=partial(asked_together, guidelines=guidelines_of(adapter_folder(settings("pipeline")))),
            state=self._watch,
            trace=self._store.trace_segments,
            local=local,
            observe=self._observe,
        )

    async def extract(self, document: Document) -> Extraction:
        """The entities of a document. :class:`shared.errors.DocumentError` if the document is at fault."""
        extraction = await self._pipeline.extract(document)
        counts = extraction.counts
        self._observe(SEGMENTS, counts.segments, {"lang": extraction.lang})
        self._observe(REFUSED, counts.refused)
        for type_, count in Counter(entity.type for entity in extraction.entities).items():
            self._observe(ENTITIES, count, {"type": type_})
        for stage, seconds in extraction.timings.items():
            self._observe(STAGE_SECONDS, seconds, {"stage": stage})
        return extraction

    async def ready(self) -> bool:
        """True: what a document needs answers, or this call waits for it."""
        await asyncio.gather(answer(self._generation.ready.remote()), self._parse(()), self._basis())
        return True

    async def _generate(self, segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
        async with self._turns:
            lines: tuple[TaggedLine, ...] = await answer(self._generation.tag.remote(segments, types))
        return lines

    async def _parse(self, lines: tuple[TaggedLine, ...]) -> Parsed:
        parsed: Parsed = await answer(self._parsing.parse.remote(lines))
        return parsed

    async def _select(self, candidates: tuple[Candidate, ...]) -> Selected:
        selected: Selected = await answer(self._selection.select.remote(candidates))
        return selected

    async def _basis(self) -> Basis:
        basis: Basis = await answer(self._selection.basis.remote())
        return basis
