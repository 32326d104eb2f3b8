"""From a document to its extraction: segments, the caches, the fan-out, and the merge into document offsets.

Segments are disjoint, so every chunk of them goes its own way through generation, parsing and selection, and only
the merge sees the whole document. What was decided of a segment before goes no way at all: the decision is looked up in
this process, then in the store. Where there is none, the generator's lines may be in the store.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from services.pipeline.cache import LocalCache
from services.pipeline.config import PipelineConfig
from services.pipeline.decisions import Decision, decisions
from services.pipeline.state import State
from shared import entity_types
from shared.errors import DocumentError, StoreError
from shared.messages import (
    Candidate,
    Counts,
    Document,
    Entity,
    Extraction,
    Lang,
    Parsed,
    Segment,
    Selected,
    TaggedLine,
    check_offsets,
)
from shared.runtime.metrics import CACHE_HITS, Observe, unobserved
from shared.text.language import detect
from shared.text.segmentation import segment

Generate = Callable[[tuple[Segment, ...], tuple[str, ...]], Awaitable[tuple[TaggedLine, ...]]]
Parse = Callable[[tuple[TaggedLine, ...]], Awaitable[Parsed]]
Select = Callable[[tuple[Candidate, ...]], Awaitable[Selected]]
KnowState = Callable[[], Awaitable[State | None]]

_Lines = dict[tuple[str, str], TaggedLine]  # by a segment's text and a type
_Chunk = list[list[Segment]]  # for each distinct text the segments that have it

# What of a line depends on text, language, type and model alone.
_CACHED = {"tagged", "presence", "brackets", "alternatives"}

# Characters from which a text is split and merged in a thread: a shorter one takes a millisecond or two, and changing
# threads twice can take as long.
_LONG = 10_000


class SegmentCache(Protocol):
    """Tagged lines and decisions by key; :class:`shared.backends.result_store.ResultStore` is one.

    StoreError where it does not answer. Its methods may block.
    """

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]: ...

    def put_segments(self, values: Mapping[str, bytes]) -> None: ...


@dataclass
class _Run:
    """What adds up over the chunks of one document."""

    types: tuple[str, ...] = ()
    state: State | None = None
    counts: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: set[str] = field(default_factory=set)
    exemplars: set[str] = field(default_factory=set)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start


class Pipeline:
    """Extracts entities. ``generate``, ``parse`` and ``select`` are the other services; ``cache`` is asked in threads.

    ``state`` tells what selection would decide by; without it, or while it does not know, no decision is cached.

    ``timings`` of an extraction are seconds: ``total`` from start to end, the others summed over chunks that ran side
    by side. ``warnings`` are codes: ``empty-text``, ``cache-unavailable``, ``cache-unreadable``, ``offsets-refused``.
    """

    def __init__(
        self,
        *,
        generate: Generate,
        parse: Parse,
        select: Select,
        cache: SegmentCache,
        model_revision: str,
        generator_revision: str,
        config: PipelineConfig,
        state: KnowState | None = None,
        local: LocalCache | None = None,
        observe: Observe = unobserved,
    ) -> None:
        self._generate = generate
        self._parse = parse
        self._select = select
        self._cache = cache
        self._model_revision = model_revision
        self._generator_revision = generator_revision
        self._config = config
        self._state = state
        self._local = local or LocalCache(0)
        self._observe = observe

    async def extract(self, document: Document) -> Extraction:
        """The entities of a document.

        :class:`shared.errors.DocumentError` where the document is at fault; what the other services raise, else.
        """
        if len(document.text) > self._config.max_characters:
            raise DocumentError(
                "text",
                f"is longer than {self._config.max_characters} characters",
                "split the document, or raise BIOBRACKET_PIPELINE_MAX_CHARACTERS",
                reason="too_large",
            )
        if document.types is not None:
            entity_types.check(document.types)
        start = time.perf_counter()
        run = _Run()
        with run.timed("segmentation"):
            # In a thread where it is long: for megabytes it takes seconds, in which other documents go on.
            long = len(document.text) >= _LONG
            lang, segments = await asyncio.to_thread(self._split, document) if long else self._split(document)
        run.types = document.types or entity_types.DEFAULTS[lang]
        if not segments:
            run.warnings.add("empty-text")
        elif self._state is not None:
            with run.timed("cache"):
                try:
                    run.state = await self._state()
                except StoreError:
                    run.warnings.add("cache-unavailable")
        run.counts.update(characters=len(document.text), segments=len(segments))
        found = await self._fan_out(_chunks(segments, self._config.chunk_segments), run)
        with run.timed("merge"):
            text = document.text
            entities, refused = await asyncio.to_thread(merge, text, found) if long else merge(text, found)
        if refused:
            run.warnings.add("offsets-refused")
        run.counts.update(entities=len(entities), refused=refused)
        run.timings["total"] = time.perf_counter() - start
        for layer, hits in run.hits.items():
            self._observe(CACHE_HITS, hits, {"layer": layer})
        return Extraction(
            document_id=document.id,
            text_sha256=document.sha256,
            lang=lang,
            types=run.types,
            entities=entities,
            model_revision=self._model_revision,
            # More than one where they changed between two chunks.
            exemplars="+".join(sorted(run.exemplars - {""})),
            warnings=tuple(sorted(run.warnings)),
            counts=Counts.model_validate(run.counts),
            timings=dict(run.timings),
        )

    def _split(self, document: Document) -> tuple[Lang, list[Segment]]:
        text = document.text
        lang = document.lang or detect(text)
        spans = segment(text, lang, self._config.max_units)
        return lang, [
            Segment(document_id=document.id, index=index, start=start, end=end, text=text[start:end], lang=lang)
            for index, (start, end) in enumerate(spans)
        ]

    async def _fan_out(self, chunks: list[_Chunk], run: _Run) -> list[Entity]:
        turns = asyncio.Semaphore(self._config.chunks_in_flight)

        async def one(chunk: _Chunk) -> list[Entity]:
            async with turns:
                return await self._extract_chunk(chunk, run)

        # Not a TaskGroup: callers tell failures apart by their class, which an ExceptionGroup would hide.
        tasks = [asyncio.create_task(one(chunk)) for chunk in chunks]
        try:
            return [entity for entities in await asyncio.gather(*tasks) for entity in entities]
        finally:
            for task in tasks:
                task.cancel()

    async def _extract_chunk(self, chunk: _Chunk, run: _Run) -> list[Entity]:
        decided = {} if run.state is None else await self._decided(chunk, run.state, run)
        entities: list[Entity] = []
        rest: _Chunk = []
        for occurrences in chunk:
            if (decision := decided.get(occurrences[0].text)) is None:
                rest.append(occurrences)
                continue
            times = len(occurrences)
            run.counts.update(
                cached_segments=times, candidates=times * decision.candidates, repairs=times * decision.repairs
            )
            if decision.candidates and run.state is not None:  # as where it was decided: selection was asked
                run.exemplars.add(run.state.exemplars)
            for occurrence in occurrences:
                entities += decision.entities_at(occurrence.start)
        if rest:
            entities += await self._decide(rest, run)
        return entities

    async def _decided(self, chunk: _Chunk, state: State, run: _Run) -> dict[str, Decision]:
        """The decisions that are cached, by text: those that are here without a thread."""
        texts = [occurrences[0].text for occurrences in chunk]
        lang = chunk[0][0].lang
        with run.timed("cache"):
            keys = [self._decision_key(state, lang, run.types, text) for text in texts]
            values = self._local.get_segments(keys)
            missing = [key for key, value in zip(keys, values, strict=True) if value is None]
            stored: dict[str, bytes] = {}
            if missing:
                try:
                    found = await asyncio.to_thread(self._cache.get_segments, missing)
                    stored = {key: value for key, value in zip(missing, found, strict=True) if value is not None}
                except StoreError:
                    run.warnings.add("cache-unavailable")
                self._local.put_segments(stored)
            decided: dict[str, Decision] = {}
            for occurrences, key, value in zip(chunk, keys, values, strict=True):
                if (known := stored.get(key) if value is None else value) is None:
                    continue
                text = occurrences[0].text
                try:
                    decided[text] = Decision.read(known, text)
                except ValueError:
                    run.warnings.add("cache-unreadable")
                    continue
                run.hits["store" if value is None else "local"] += len(occurrences)
        return decided

    async def _decide(self, chunk: _Chunk, run: _Run) -> tuple[Entity, ...]:
        """Generates what has no lines, parses, selects, and caches what was decided."""
        lines = await self._tag(chunk, run)
        everywhere = tuple(
            line if line.segment is occurrence else line.model_copy(update={"segment": occurrence})
            for occurrences in chunk
            for occurrence in occurrences
            for line in (lines[occurrence.text, type_] for type_ in run.types)
        )
        with run.timed("parsing"):
            parsed = await self._parse(everywhere)
        run.counts.update(candidates=len(parsed.candidates), repairs=sum(parsed.repairs.values()))
        entities: tuple[Entity, ...] = ()
        state = run.state
        if parsed.candidates:
            with run.timed("selection"):
                selected = await self._select(parsed.candidates)
            run.exemplars.add(selected.exemplars)
            entities = selected.entities
            # Exemplars can have changed meanwhile, or differ on the replica that answered.
            state = state and state._replace(exemplars=selected.exemplars)
        if state is not None:
            await self._keep(chunk, state, parsed, entities, run)
        return entities

    async def _keep(self, chunk: _Chunk, state: State, parsed: Parsed, entities: tuple[Entity, ...], run: _Run) -> None:
        segments = sorted((each for occurrences in chunk for each in occurrences), key=lambda each: each.start)
        lang = segments[0].lang
        values = {
            self._decision_key(state, lang, run.types, text): decision.write()
            for text, decision in decisions(segments, parsed, entities).items()
        }
        self._local.put_segments(values)
        await self._put(values, run)

    async def _put(self, values: Mapping[str, bytes], run: _Run) -> None:
        with run.timed("cache"):
            try:
                await asyncio.to_thread(self._cache.put_segments, values)
            except StoreError:
                run.warnings.add("cache-unavailable")

    async def _tag(self, chunk: _Chunk, run: _Run) -> _Lines:
        """The line of each segment text and type: from the cache, else generated and cached."""
        lines = await self._cached([occurrences[0] for occurrences in chunk], run)
        missing: dict[tuple[str, ...], list[Segment]] = {}
        for first, *others in chunk:
            if types := tuple(type_ for type_ in run.types if (first.text, type_) not in lines):
                missing.setdefault(types, []).append(first)
            else:
                run.counts["cached_segments"] += 1 + len(others)
                run.hits["lines"] += 1 + len(others)
        if not missing:
            return lines
        with run.timed("generation"):
            size = self._config.request_segments
            batches = await asyncio.gather(
                *(
                    self._generate(tuple(group[i : i + size]), types)
                    for types, group in missing.items()
                    for i in range(0, len(group), size)
                )
            )
        made = {(line.segment.text, line.type): line for batch in batches for line in batch}
        if made.keys() != {(each.text, type_) for types, group in missing.items() for each in group for type_ in types}:
            raise RuntimeError("generation: the lines that came back are not those of the segments and types asked for")
        values = {
            self._key(line.segment, line.type): line.model_dump_json(include=_CACHED, exclude_defaults=True).encode()
            for line in made.values()
        }
        await self._put(values, run)
        return lines | made

    async def _cached(self, segments: list[Segment], run: _Run) -> _Lines:
        asked = [(each, type_) for each in segments for type_ in run.types]
        with run.timed("cache"):
            try:
                values = await asyncio.to_thread(self._cache.get_segments, [self._key(*pair) for pair in asked])
            except StoreError:
                run.warnings.add("cache-unavailable")
                return {}
        lines = {}
        for (each, type_), value in zip(asked, values, strict=True):
            if value is None:
                continue
            try:
                line = TaggedLine(segment=each, type=type_, **json.loads(value))
            except (TypeError, ValueError):
                run.warnings.add("cache-unreadable")
                continue
            lines[each.text, type_] = line
        return lines

    def _key(self, segment: Segment, type_: str) -> str:
        # The text comes last: nothing before it can hold the separator.
        what = "\x1f".join((self._generator_revision, segment.lang, type_, segment.text))
        return hashlib.sha256(what.encode()).hexdigest()

    def _decision_key(self, state: State, lang: Lang, types: Iterable[str], text: str) -> str:
        # The prefix tells it from the key of a line, which is a digest alone.
        what = "\x1f".join((self._model_revision, *state, lang, ",".join(sorted(types)), text))
        return f"decision:{hashlib.sha256(what.encode()).hexdigest()}"


def _chunks(segments: Sequence[Segment], size: int) -> list[_Chunk]:
    """Chunks of ``size`` distinct texts, so that what a document repeats is generated once."""
    occurrences: dict[str, list[Segment]] = {}
    for each in segments:
        occurrences.setdefault(each.text, []).append(each)
    distinct = list(occurrences.values())
    return [distinct[i : i + size] for i in range(0, len(distinct), size)]


def merge(text: str, found: Iterable[Entity]) -> tuple[tuple[Entity, ...], int]:
    """What is kept of the entities found in a text, and how many were refused because their offsets do not fit it.

    Kept are the most confident of each span and type, ordered by start, falling end and type. ``parent_id`` is the
    shortest one that contains an entity and is longer than it; the first in order where several are as short.
    """
    best: dict[tuple[int, int, str], Entity] = {}
    refused = 0
    for entity in found:
        if not check_offsets(text, entity):
            refused += 1
            continue
        key = (entity.start, -entity.end, entity.type)
        if key not in best or entity.confidence > best[key].confidence:
            best[key] = entity
    kept: list[Entity] = []
    around: list[Entity] = []  # those that begin at or before the current one and end behind its start
    for _, entity in sorted(best.items()):
        around = [other for other in around if other.end > entity.start]
        containers = [
            other for other in around if other.end >= entity.end and other.end - other.start > entity.end - entity.start
        ]
        parent = min(containers, key=lambda other: other.end - other.start, default=None)
        parent_id = parent.id if parent else None
        # Most have none already, and copies are what costs most here.
        kept.append(entity if entity.parent_id == parent_id else entity.model_copy(update={"parent_id": parent_id}))
        around.append(entity)
    return tuple(kept), refused
