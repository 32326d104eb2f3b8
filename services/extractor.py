"""The whole extraction in one process, without Ray, Kafka or Redis, for evaluation, calibration and benchmarks.

It runs the same code as the services, wired as in :mod:`services.app`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from services.generation.config import GenerationConfig
from services.generation.engine import Engine, TagRequest
from services.generation.engines import load
from services.line_file import LineFile, LineFileError
from services.parsing.brackets import parse_lines
from services.pipeline.assembly import Pipeline, SegmentCache
from services.pipeline.config import PipelineConfig
from services.selection.batching import Batcher
from services.selection.config import SelectionConfig
from services.selection.selector import Selector
from shared.backends.vault import vault
from shared.messages import Candidate, Document, Extraction, Parsed, Segment, Selected, TaggedLine
from shared.model.folders import adapter_folder
from shared.model.revision import generator_revision
from shared.model.scheme import Guideline, asked_together, guidelines_of
from shared.runtime.cpus import cpus, use_threads
from shared.selection.calibration import Calibration
from shared.selection.selector_folder import model_revision
from shared.settings import Settings


class NoCache:
    """A segment cache that holds nothing, so that every segment is generated and measured."""

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]:
        return [None] * len(keys)

    def put_segments(self, values: Mapping[str, bytes]) -> None:
        return None


class Extractor:
    """Extracts the entities of documents in this process."""

    def __init__(
        self,
        engine: Engine,
        selector: Selector,
        *,
        model_revision: str,
        generator_revision: str = "",
        guidelines: Sequence[Guideline] = (),
        cache: SegmentCache | None = None,
    ) -> None:
        """``guidelines``: of the adapter (:func:`shared.model.scheme.asked_together`).

        ``cache``: holds the generator's lines, by ``generator_revision``; without one every line is generated.
        """
        self.engine = engine
        self.selector = selector
        self._model_revision = model_revision
        self._generator_revision = generator_revision
        self._guidelines = guidelines
        self._cache = cache or NoCache()

    @classmethod
    def load(cls, settings: Settings, calibration: Calibration | None = None, lines: Path | None = None) -> Extractor:
        """Load what the settings name. ``calibration`` replaces theirs; ``lines``: the file of a :class:`LineFile`."""
        return cls(
            load(settings, GenerationConfig()),
            Selector.load(settings, calibration),
            model_revision=model_revision(settings),
            generator_revision=generator_revision(settings),
            guidelines=guidelines_of(adapter_folder(settings)),
            cache=_line_file(lines, settings) if lines else None,
        )

    def extract(
        self, documents: Iterable[Document], done: Callable[[Extraction], None] = lambda extraction: None
    ) -> list[Extraction]:
        """The extraction of each document, in order. ``done`` is called with each as soon as it is finished."""
        return asyncio.run(self._extract(list(documents), done, None))

    def candidates(
        self, documents: Sequence[Document], done: Callable[[Extraction], None] = lambda extraction: None
    ) -> list[list[Candidate]]:
        """The candidates in each document, one for each span and type, sorted. Document ids must differ.

        Selection is skipped, so the extractions that ``done`` gets have no entities.
        """
        found: dict[str, dict[tuple[int, int, str], Candidate]] = {document.id: {} for document in documents}

        def collect(candidates: Sequence[Candidate]) -> None:
            for c in candidates:
                found[c.segment.document_id][c.start, c.end, c.type] = c

        asyncio.run(self._extract(list(documents), done, collect))
        return [[by_span[key] for key in sorted(by_span)] for by_span in found.values()]

    async def _extract(
        self,
        documents: list[Document],
        done: Callable[[Extraction], None],
        collect: Callable[[Sequence[Candidate]], None] | None,
    ) -> list[Extraction]:
        selection = SelectionConfig()
        executor = ThreadPoolExecutor(1, initializer=use_threads, initargs=(selection.threads or cpus(),))
        selector: Batcher[tuple[Candidate, ...], Selected] = Batcher(
            self.selector.select,
            self.selector.tokens,
            batch_tokens=selection.batch_tokens,
            max_queued=10**9,
            full="",
            executor=executor,
        )
        in_flight = asyncio.Semaphore(64)  # enough documents to keep the engine busy, while bounding memory

        async def generate(segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
            futures = [self.engine.submit(TagRequest(segment, types)) for segment in segments]
            return tuple(await asyncio.gather(*map(asyncio.wrap_future, futures)))

        async def parse(lines: tuple[TaggedLine, ...]) -> Parsed:
            return parse_lines(lines)

        async def select(candidates: tuple[Candidate, ...]) -> Selected:
            if collect is not None:
                collect(candidates)
                return Selected(entities=())
            (selected,) = await selector.ask([candidates])
            return selected

        pipeline = Pipeline(
            generate=generate,
            parse=parse,
            select=select,
            cache=self._cache,
            model_revision=self._model_revision,
            generator_revision=self._generator_revision,
            config=PipelineConfig(),
            group=partial(asked_together, guidelines=self._guidelines),
        )

        async def one(document: Document) -> Extraction:
            async with in_flight:
                extraction = await pipeline.extract(document)
            done(extraction)
            return extraction

        try:
            return list(await asyncio.gather(*(one(document) for document in documents)))
        finally:
            executor.shutdown()


def _line_file(path: Path, settings: Settings) -> LineFile:
    if settings.store_text == "none":
        raise LineFileError(
            "lines: would hold text, but BIOBRACKET_STORE_TEXT is none; leave the file out, or unset that"
        )
    return LineFile(path, vault(settings))
