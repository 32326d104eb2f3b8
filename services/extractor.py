"""The whole extraction in one process, with no Ray, Kafka or Redis: what evaluation, calibration and benchmarks run.

The cores are those of the services, wired as in :mod:`services.app`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from services.generation.batching import Batcher
from services.generation.config import GenerationConfig
from services.generation.copy import CopyEngine
from services.generation.engine import Engine, TagRequest
from services.parsing.brackets import parse_lines
from services.pipeline.assembly import Pipeline
from services.pipeline.config import PipelineConfig
from services.selection.confidence import ConfidenceSelector
from services.selection.selector import Selector
from shared.adapters import adapter_folder, model_revision
from shared.base_model import load_tokenizer
from shared.calibration import Calibration
from shared.copying import CopyTokens
from shared.messages import Candidate, Document, Entity, Extraction, Parsed, Segment, TaggedLine
from shared.settings import Settings
from training.corpora import Example, corpus_folder, documents_of, read
from training.evaluation import Scores, score_all


class NoCache:
    """A segment cache that holds nothing: every segment is generated, as a measurement wants it."""

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]:
        return [None] * len(keys)

    def put_segments(self, values: Mapping[str, bytes]) -> None:
        return None


class Extractor:
    """Extracts the entities of documents in this process. ``observe`` sees the candidates before selection."""

    def __init__(
        self,
        engine: Engine,
        selector: Selector,
        *,
        model_revision: str,
        generation: GenerationConfig,
        observe: Callable[[tuple[Candidate, ...]], None] = lambda candidates: None,
    ) -> None:
        self.engine = engine
        self._selector = selector
        self._model_revision = model_revision
        self._generation = generation
        self._observe = observe

    @classmethod
    def load(
        cls,
        settings: Settings,
        observe: Callable[[tuple[Candidate, ...]], None] = lambda candidates: None,
        calibration: Calibration | None = None,
    ) -> Extractor:
        """Base model, adapter and calibration of the settings."""
        config = GenerationConfig()
        calibration = calibration or Calibration.for_adapter(adapter_folder(settings))
        return cls(
            CopyEngine.load(settings, config),
            ConfidenceSelector(calibration),
            model_revision=model_revision(settings),
            generation=config,
            observe=observe,
        )

    def extract(
        self, documents: Iterable[Document], done: Callable[[Extraction], None] = lambda extraction: None
    ) -> list[Extraction]:
        """The extraction of each document, in order. ``done`` is called as each is finished."""
        return asyncio.run(self._extract(list(documents), done))

    async def _extract(self, documents: list[Document], done: Callable[[Extraction], None]) -> list[Extraction]:
        batcher = Batcher(self.engine, batch_tokens=self._generation.batch_tokens, max_queued=10**9)
        turns = asyncio.Semaphore(64)  # enough to fill a batch, and no more state than that

        async def generate(segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
            lines = await batcher.tag([TagRequest(segment, types) for segment in segments])
            return tuple(line for found in lines for line in found)

        async def parse(lines: tuple[TaggedLine, ...]) -> Parsed:
            return parse_lines(lines)

        async def select(candidates: tuple[Candidate, ...]) -> tuple[Entity, ...]:
            self._observe(candidates)
            return self._selector.select(candidates)

        pipeline = Pipeline(
            generate=generate,
            parse=parse,
            select=select,
            cache=NoCache(),
            model_revision=self._model_revision,
            config=PipelineConfig(),
        )

        async def one(document: Document) -> Extraction:
            async with turns:
                extraction = await pipeline.extract(document)
            done(extraction)
            return extraction

        try:
            return list(await asyncio.gather(*(one(document) for document in documents)))
        finally:
            batcher.close()


class DevScores:
    """Strict micro F1 on the first texts of each corpus's dev split, of a model in training; it can be pickled.

    Greedy mentions with the default calibration: the thresholds of a model that still changes mean nothing.
    """

    def __init__(self, settings: Settings, corpora: Mapping[str, dict[str, str] | None], texts: int) -> None:
        """``corpora``: by name, with the mapping of their labels (none: the known one)."""
        self._settings = settings
        self._corpora = corpora
        self._texts = texts
        self._examples: dict[str, list[Example]] = {}

    def __call__(self, model: Any) -> dict[str, float]:
        """The scores of a causal model with packed attention, by corpus."""
        if not self._examples:
            self._examples = {
                name: read(corpus_folder(name, self._settings), "dev", types)[: self._texts]
                for name, types in self._corpora.items()
            }
        generation = GenerationConfig()
        engine = CopyEngine(model, CopyTokens(load_tokenizer(self._settings)), generation)
        extractor = Extractor(
            engine, ConfidenceSelector(Calibration.default()), model_revision="training", generation=generation
        )
        scores = {}
        for name, examples in self._examples.items():
            found = score_all(examples, extractor.extract(documents_of(examples)))
            scores[name] = sum(found, Scores()).micro.f1
        return scores
