"""From a document to its extraction: segmentation, caches, fan-out to the services, and the merge.

Segments are disjoint, so chunks of them pass through generation, parsing and selection independently; only the merge
sees the whole document. A segment that was decided before skips all three: its decision comes from this process or the
store. Failing that, its tagged line may be in the store and spare generation.
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
from services.pipeline.decisions import SegmentDecision, decisions_of
from services.pipeline.selection_state import SelectionState
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
# Notes that what is cached under these keys holds text of a document, so that it can be erased. StoreError. May block.
Trace = Callable[[str, Sequence[str]], None]
ReadState = Callable[[], Awaitable[SelectionState | None]]

_Lines = dict[str, TaggedLine]  # by the segment's text
Group = Callable[[Sequence[str], Lang], list[tuple[str, ...]]]
_Chunk = list[list[Segment]]  # for each distinct text the segments that have it

# The fields of a line that its key stands for.
_NOT_CACHED = {"v", "segment", "types"}

# Texts of at least so many characters are split and merged in a thread. Shorter ones take a millisecond or two, about
# what switching threads twice costs.
_LONG = 10_000

_INVENTORY_ORDER = {key: place for place, key in enumerate(entity_types.TYPES)}


class SegmentCache(Protocol):
    """Tagged lines and decisions by key; :class:`shared.backends.result_store.ResultStore` is one.

    StoreError where it does not answer. Its methods may block.
    """

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]: ...

    def put_segments(self, values: Mapping[str, bytes]) -> None: ...


@dataclass
class _DocumentRun:
    """What the chunks of one document share and add up.

    ``types``: in the order of the inventory, so that the order they were asked in makes no other prompt or cache entry;
    ``groups``: those that a line asks for together.
    """

    document_id: str
    types: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    state: SelectionState | None = None
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
    """Extracts entities.

    ``generate``, ``parse`` and ``select`` call the other services; ``generate`` returns one line a segment, in order.
    ``group`` parts types into those that a line asks for together (:func:`shared.model.scheme.asked_together`).
    ``cache`` and ``trace`` are called in threads. ``state`` returns what selection decides by at the moment; decisions
    are cached only while that is known.

    ``timings`` of an extraction are seconds: ``total`` is wall time, the others are summed over concurrent chunks.
    ``warnings`` are codes: ``empty-text``, ``cache-unavailable``, ``cache-unreadable``, ``offsets-refused``,
    ``unknown-fields``.
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
        group: Group = lambda types, lang: [tuple(types)],
        state: ReadState | None = None,
        trace: Trace | None = None,
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
        self._group = group
        self._state = state
        self._trace = trace
        self._local = local or LocalCache(0)
        self._observe = observe

    async def extract(self, document: Document) -> Extraction:
        """The entities of a document.

        Raises :class:`shared.errors.DocumentError` where the document is at fault, else whatever a service raises.
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
        run = _DocumentRun(document.id)
        with run.timed("segmentation"):
            # Megabytes take seconds, which must not hold up other documents.
            long = len(document.text) >= _LONG
            lang, segments = await asyncio.to_thread(self._split, document) if long else self._split(document)
        asked = document.types or entity_types.DEFAULTS[lang]
        run.types = tuple(sorted(asked, key=_INVENTORY_ORDER.__getitem__))
        run.groups = tuple(self._group(run.types, lang))
        if document.model_extra:
            run.warnings.add("unknown-fields")
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
            types=asked,
            entities=entities,
            metadata=document.metadata,
            model_revision=self._model_revision,
            # More than one if they changed between two chunks.
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

    async def _fan_out(self, chunks: list[_Chunk], run: _DocumentRun) -> list[Entity]:
        turns = asyncio.Semaphore(self._config.chunks_in_flight)

        async def one(chunk: _Chunk) -> list[Entity]:
            async with turns:
                return await self._extract_chunk(chunk, run)

        # Not a TaskGroup: callers catch by exception class, which an ExceptionGroup would hide.
        tasks = [asyncio.create_task(one(chunk)) for chunk in chunks]
        try:
            return [entity for entities in await asyncio.gather(*tasks) for entity in entities]
        finally:
            for task in tasks:
                task.cancel()

    async def _extract_chunk(self, chunk: _Chunk, run: _DocumentRun) -> list[Entity]:
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
            if decision.candidates and run.state is not None:  # without candidates selection is never asked
                run.exemplars.add(run.state.exemplars)
            for occurrence in occurrences:
                entities += decision.entities_at(occurrence.start)
        if rest:
            entities += await self._decide(rest, run)
        return entities

    async def _decided(self, chunk: _Chunk, state: SelectionState, run: _DocumentRun) -> dict[str, SegmentDecision]:
        """The cached decisions, by text. No thread is needed where all are in this process."""
        texts = [occurrences[0].text for occurrences in chunk]
        lang = chunk[0][0].lang
        with run.timed("cache"):
            keys = [self._decision_key(state, lang, run.types, text) for text in texts]
            values = self._local.get_segments(keys)
            missing = [key for key, value in zip(keys, values, strict=True) if value is None]
            stored: dict[str, bytes] = {}
            if missing or self._trace:
                here = [key for key, value in zip(keys, values, strict=True) if value is not None]
                stored = await self._read(missing, here, run)
                self._local.put_segments(stored)
            decided: dict[str, SegmentDecision] = {}
            for occurrences, key, value in zip(chunk, keys, values, strict=True):
                if (known := stored.get(key) if value is None else value) is None:
                    continue
                text = occurrences[0].text
                try:
                    decided[text] = SegmentDecision.read(known, text)
                except ValueError:
                    run.warnings.add("cache-unreadable")
                    continue
                run.hits["store" if value is None else "local"] += len(occurrences)
        return decided

    async def _decide(self, chunk: _Chunk, run: _DocumentRun) -> tuple[Entity, ...]:
        """Generates the lines that are not cached, parses, selects, and caches the decisions."""
        lines = await self._tag(chunk, run)
        everywhere = tuple(
            line.model_copy(update={"segment": occurrence})
            for occurrences in chunk
            for occurrence in occurrences
            for line in lines[occurrence.text]
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
            # The exemplars may have changed since, or differ on the replica that answered.
            state = state and state._replace(exemplars=selected.exemplars)
        if state is not None:
            await self._keep(chunk, state, parsed, entities, run)
        return entities

    async def _keep(
        self, chunk: _Chunk, state: SelectionState, parsed: Parsed, entities: tuple[Entity, ...], run: _DocumentRun
    ) -> None:
        segments = sorted((each for occurrences in chunk for each in occurrences), key=lambda each: each.start)
        lang = segments[0].lang
        values = {
            self._decision_key(state, lang, run.types, text): decision.write()
            for text, decision in decisions_of(segments, parsed, entities).items()
        }
        if await self._put(values, run):
            self._local.put_segments(values)

    async def _read(self, missing: Sequence[str], here: Sequence[str], run: _DocumentRun) -> dict[str, bytes]:
        """What the cache has of the missing ones; those that are ``here`` are used as well, and so traced."""

        def read() -> dict[str, bytes]:
            found = self._cache.get_segments(missing) if missing else ()
            stored = {key: value for key, value in zip(missing, found, strict=True) if value is not None}
            if self._trace and (here or stored):
                self._trace(run.document_id, [*here, *stored])
            return stored

        try:
            return await asyncio.to_thread(read)
        except StoreError:
            run.warnings.add("cache-unavailable")
            return {}

    async def _put(self, values: Mapping[str, bytes], run: _DocumentRun) -> bool:
        """Caches values in the store; returns whether they may be cached here, too, since they are traced."""
        traced = self._trace is None

        def put() -> None:
            # Before, so that nothing is cached that could not be found; after, as the document may be erased meanwhile.
            nonlocal traced
            if self._trace:
                self._trace(run.document_id, list(values))
            traced = True
            self._cache.put_segments(values)
            if self._trace:
                self._trace(run.document_id, list(values))

        with run.timed("cache"):
            try:
                await asyncio.to_thread(put)
            except StoreError:
                run.warnings.add("cache-unavailable")
        return traced

    async def _tag(self, chunk: _Chunk, run: _DocumentRun) -> dict[str, list[TaggedLine]]:
        """The lines of each segment text, one for each group of types: from the cache, else generated and cached."""
        segments = [occurrences[0] for occurrences in chunk]
        found = await asyncio.gather(*(self._lines(segments, types, run) for types in run.groups))
        generated = {text for _, made in found for text in made}
        for first, *others in chunk:
            if first.text not in generated:
                run.counts["cached_segments"] += 1 + len(others)
                run.hits["lines"] += 1 + len(others)
        return {each.text: [(cached | made)[each.text] for cached, made in found] for each in segments}

    async def _lines(self, segments: list[Segment], types: tuple[str, ...], run: _DocumentRun) -> tuple[_Lines, _Lines]:
        """The lines of some types: those that were cached, and those that are generated now."""
        cached = await self._cached(segments, types, run)
        missing = tuple(each for each in segments if each.text not in cached)
        if not missing:
            return cached, {}
        with run.timed("generation"):
            size = self._config.request_segments
            requests = [missing[i : i + size] for i in range(0, len(missing), size)]
            batches = await asyncio.gather(*(self._generate(request, types) for request in requests))
        made = {line.segment.text: line for batch in batches for line in batch if line.types == types}
        asked = [[each.text for each in request] for request in requests]
        if len(made) < len(missing) or [[line.segment.text for line in batch] for batch in batches] != asked:
            raise RuntimeError("generation: the lines that came back are not those of the segments and types asked for")
        values = {
            self._key(line.segment, types): line.model_dump_json(exclude=_NOT_CACHED, exclude_defaults=True).encode()
            for line in made.values()
        }
        await self._put(values, run)
        return cached, made

    async def _cached(self, segments: list[Segment], types: tuple[str, ...], run: _DocumentRun) -> _Lines:
        with run.timed("cache"):
            keys = [self._key(each, types) for each in segments]
            values = await self._read(keys, (), run)
        lines = {}
        for each, key in zip(segments, keys, strict=True):
            if (value := values.get(key)) is None:
                continue
            try:
                line = TaggedLine(segment=each, types=types, **json.loads(value))
            except (TypeError, ValueError):
                run.warnings.add("cache-unreadable")
                continue
            lines[each.text] = line
        return lines

    def _key(self, segment: Segment, types: tuple[str, ...]) -> str:
        # The text comes last: nothing before it can hold the separator.
        what = "\x1f".join((self._generator_revision, segment.lang, ",".join(types), segment.text))
        return hashlib.sha256(what.encode()).hexdigest()

    def _decision_key(self, state: SelectionState, lang: Lang, types: tuple[str, ...], text: str) -> str:
        # The prefix tells it from the key of a line, which is a digest alone.
        what = "\x1f".join((self._model_revision, *state, lang, ",".join(types), text))
        return f"decision:{hashlib.sha256(what.encode()).hexdigest()}"


def _chunks(segments: Sequence[Segment], size: int) -> list[_Chunk]:
    """Chunks of ``size`` distinct texts, so that a repeated segment is generated once."""
    occurrences: dict[str, list[Segment]] = {}
    for each in segments:
        occurrences.setdefault(each.text, []).append(each)
    distinct = list(occurrences.values())
    return [distinct[i : i + size] for i in range(0, len(distinct), size)]


def merge(text: str, found: Iterable[Entity]) -> tuple[tuple[Entity, ...], int]:
    """The entities found in a text without duplicates, and how many were refused because their offsets do not fit it.

    Of each span and type the most confident is kept. They are ordered by start, descending end and type. ``parent_id``
    names the shortest entity that is longer and contains this one; the first in order where several are as short.
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
    around: list[Entity] = []  # those that begin at or before the current one and end after its start
    for _, entity in sorted(best.items()):
        around = [other for other in around if other.end > entity.start]
        containers = [
            other for other in around if other.end >= entity.end and other.end - other.start > entity.end - entity.start
        ]
        parent = min(containers, key=lambda other: other.end - other.start, default=None)
        parent_id = parent.id if parent else None
        # Most have the right one (none) already, and copying is what costs here.
        kept.append(entity if entity.parent_id == parent_id else entity.model_copy(update={"parent_id": parent_id}))
        around.append(entity)
    return tuple(kept), refused
