"""The pipeline with a tagger, a parser and a selector made of regular expressions, and a cache in memory."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.pipeline.assembly import Group, Pipeline, merge
from services.pipeline.cache import LocalCache
from services.pipeline.config import PipelineConfig
from services.pipeline.selection_state import SelectionState
from shared.entity_types import DEFAULTS
from shared.errors import DocumentError, StoreError
from shared.messages import (
    Candidate,
    Document,
    Entity,
    Evidence,
    Extraction,
    Lang,
    Parsed,
    Segment,
    Selected,
    TaggedLine,
    check_offsets,
    entity_id,
)
from shared.text import tagging

MENTIONS = {
    "protein": r"[A-Z]{2,}\d+( receptor)?",
    "dna": r"[A-Z]{2,}\d+",
    "disease": r"右肺腺癌|fever",
    "body": "右肺",
    "equipment": r"receptor [A-Z]+",
}


def tag(segment: Segment, types: tuple[str, ...]) -> TaggedLine:
    mentions = [
        (*match.span(), type_)
        for type_ in types
        if type_ in MENTIONS
        for match in re.finditer(MENTIONS[type_], segment.text)
    ]
    rows = tagging.encode(segment.text, mentions)
    return TaggedLine(segment=segment, types=types, tagged="\n".join(rows), presence=0.9 if rows else 0.1)


async def parse(lines: tuple[TaggedLine, ...]) -> Parsed:
    candidates = []
    for line in lines:
        row = len(line.segment.text) + 1  # of a further row, with the line break before it
        for start, end, type_ in tagging.decode(line.tagged)[1]:
            within = start % row, (end - 1) % row + 1
            candidates.append(
                Candidate(
                    segment=line.segment,
                    type=type_,
                    start=line.segment.start + within[0],
                    end=line.segment.start + within[1],
                    text=line.segment.text[slice(*within)],
                    generator_confidence=line.presence,
                )
            )
    return Parsed(candidates=tuple(candidates), repairs={"none": 0})


def entity(start: int, end: int, type_: str, text: str, confidence: float = 0.5) -> Entity:
    return Entity(
        id=entity_id(type_, start, end),
        start=start,
        end=end,
        text=text[start:end],
        type=type_,
        confidence=confidence,
        generator_confidence=confidence,
    )


async def select(candidates: tuple[Candidate, ...]) -> Selected:
    entities = tuple(
        Entity(
            id=entity_id(c.type, c.start, c.end),
            start=c.start,
            end=c.end,
            text=c.text,
            type=c.type,
            confidence=c.generator_confidence,
            generator_confidence=c.generator_confidence,
        )
        for c in candidates
    )
    return Selected(entities=entities, exemplars="index.1")


class Memory:
    """A cache; ``broken`` makes it fail."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.broken = False
        self._lock = threading.Lock()

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]:
        self._check()
        return [self.values.get(key) for key in keys]

    def put_segments(self, values: Mapping[str, bytes]) -> None:
        self._check()
        with self._lock:
            self.values.update(values)

    def _check(self) -> None:
        if self.broken:
            raise StoreError("redis: gone", retryable=True)


class Generator:
    """Remembers what it was asked for, and how many requests were under way at once.

    It answers none before ``together`` of them have met.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.requests: list[int] = []
        self.running = self.most = 0
        self.together = 1
        self._met = asyncio.Event()

    async def __call__(self, segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
        self.requests.append(len(segments))
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running >= self.together:
            self._met.set()
        await asyncio.wait_for(self._met.wait(), timeout=60)
        await asyncio.sleep(0.01 if self.together > 1 else 0)  # one more than allowed would come in now
        self.running -= 1
        self.asked += [(segment.text, types) for segment in segments]
        return tuple(tag(segment, types) for segment in segments)


class Bench:
    """A pipeline and what is around it."""

    def __init__(
        self,
        revision: str = "r1",
        memory: Memory | None = None,
        selector: str = "",
        group: Group = lambda types, lang: [tuple(types)],
        **config: int,
    ) -> None:
        self.memory = memory or Memory()
        self.hits: Counter[str] = Counter()
        self.generator = Generator()
        self.pipeline = Pipeline(
            generate=self.generator,
            parse=parse,
            select=select,
            cache=self.memory,
            model_revision=revision + selector,
            generator_revision=revision,
            config=PipelineConfig.model_validate(config),
            group=group,
        )

    def extract(self, text: str, **fields: object) -> Extraction:
        document = Document.model_validate({"id": "d", "text": text, **fields})
        return asyncio.run(self.pipeline.extract(document))


TEXT = "Activation of the CD28 receptor.\r\n\r\nNo fever today. 😀 CD28 again [CD3]."


def test_entities_lie_in_the_document_and_are_nested() -> None:
    result = Bench().extract(TEXT)
    assert all(check_offsets(TEXT, each) for each in result.entities)
    assert [(each.text, each.type) for each in result.entities] == [
        ("CD28 receptor", "protein"),
        ("CD28", "dna"),
        ("fever", "disease"),
        ("CD28", "dna"),
        ("CD28", "protein"),
        ("CD3", "dna"),
        ("CD3", "protein"),
    ]
    outer, inner = result.entities[:2]
    assert (outer.parent_id, inner.parent_id) == (None, outer.id)
    assert result.entities[3].parent_id is None  # the same span of another type is no parent
    assert (result.document_id, result.lang, result.types) == ("d", "en", DEFAULTS["en"])
    assert result.text_sha256 == Document(id="d", text=TEXT).sha256
    assert result.counts.entities == result.counts.candidates == 7
    assert result.counts.characters == len(TEXT)
    assert result.counts.refused == 0
    assert result.warnings == ()
    assert result.timings.keys() == {"segmentation", "cache", "generation", "parsing", "selection", "merge", "total"}


def test_types_of_two_groups_take_two_lines_and_find_the_same() -> None:
    asked = ("protein", "dna", "disease")

    def group(types: Sequence[str], lang: Lang) -> list[tuple[str, ...]]:
        assert (set(types), lang) == (set(asked), "en")
        return [("protein", "dna"), ("disease",)]

    whole = Bench().extract(TEXT, types=asked)
    memory = Memory()
    bench = Bench(memory=memory, group=group)
    parts = bench.extract(TEXT, types=asked)
    assert [(e.id, e.parent_id) for e in parts.entities] == [(e.id, e.parent_id) for e in whole.entities]
    assert {e.type for e in parts.entities} == set(asked)
    assert {types for _, types in bench.generator.asked} == {("protein", "dna"), ("disease",)}
    assert parts.counts.segments * 2 == len(bench.generator.asked)
    assert parts.counts.cached_segments == 0
    # What was generated for a group serves whoever asks for it, alone or beside others; only the rest is generated.
    other = Bench(memory=memory, group=lambda types, lang: [("disease",), ("chemical",)])
    mixed = other.extract(TEXT, types=("disease", "chemical"))
    assert {types for _, types in other.generator.asked} == {("chemical",)}
    assert mixed.counts.cached_segments == 0
    again = Bench(memory=memory, group=group).extract(TEXT, types=asked)
    assert again.counts.cached_segments == again.counts.segments
    assert again.entities == parts.entities


def test_chinese_is_detected_and_types_are_taken_as_asked() -> None:
    result = Bench().extract("患者因右肺腺癌入院。", types=["disease", "body"])
    assert (result.lang, result.types) == ("zh", ("disease", "body"))
    assert [(each.text, each.parent_id) for each in result.entities] == [("右肺腺癌", None), ("右肺", "disease:3-7")]
    assert Bench().extract("fever", lang="zh").lang == "zh"


@pytest.mark.parametrize("text", ["", " \r\n\t　"])
def test_a_text_of_nothing_has_no_entities(text: str) -> None:
    bench = Bench()
    result = bench.extract(text)
    assert (result.entities, result.warnings, result.counts.segments) == ((), ("empty-text",), 0)
    assert bench.generator.asked == []


def test_nul_bytes_are_text() -> None:
    text = "\x00CD28\x00 and CD3"
    assert [each.text for each in Bench().extract(text, types=["dna"]).entities] == ["CD28", "CD3"]


def test_what_repeats_is_generated_once() -> None:
    bench = Bench(chunk_segments=2)
    text = "\n\n".join(["CD28 binds.", "CD3 binds."] * 10)
    result = bench.extract(text, types=["dna"])
    assert result.counts.segments == 20
    assert sorted(bench.generator.asked) == [("CD28 binds.", ("dna",)), ("CD3 binds.", ("dna",))]
    assert [each.text for each in result.entities] == ["CD28", "CD3"] * 10
    assert result.counts.cached_segments == 0


def test_a_long_document_goes_in_chunks_side_by_side() -> None:
    bench = Bench(chunk_segments=3, chunks_in_flight=2)
    bench.generator.together = 2
    text = "\n\n".join(f"CD{n} binds." for n in range(20))
    assert bench.extract(text, types=["dna"]).counts.entities == 20
    assert sorted(bench.generator.requests) == [2, 3, 3, 3, 3, 3, 3]
    assert bench.generator.most == 2


def test_replicas_of_generation_share_a_chunk() -> None:
    bench = Bench(request_segments=3)
    text = "\n\n".join(f"CD{n} binds." for n in range(8))
    assert bench.extract(text, types=["dna"]).counts.entities == 8
    assert sorted(bench.generator.requests) == [2, 3, 3]


def test_the_cache_spares_the_generator() -> None:
    bench = Bench()
    first = bench.extract(TEXT)
    asked = len(bench.generator.asked)
    moved = bench.extract("\n\n" + TEXT, id="other")
    assert len(bench.generator.asked) == asked
    assert moved.counts.cached_segments == moved.counts.segments == first.counts.segments
    assert [each.text for each in moved.entities] == [each.text for each in first.entities]
    assert all(check_offsets("\n\n" + TEXT, each) for each in moved.entities)
    assert all(each.document_id == "other" for each in (moved,))


def test_types_in_another_order_are_the_same_types() -> None:
    bench = Bench()
    first = bench.extract("CD28 binds.", types=["dna", "protein"])
    again = bench.extract("CD28 binds.", types=["protein", "dna"])
    assert bench.generator.asked == [("CD28 binds.", ("protein", "dna"))]  # the order of the inventory
    assert (first.types, again.types) == (("dna", "protein"), ("protein", "dna"))  # as asked
    assert first.entities == again.entities
    assert first.key == again.key


def test_other_types_are_generated_together() -> None:
    bench = Bench()
    bench.extract("CD28 binds.", types=["dna"])
    bench.generator.asked.clear()
    result = bench.extract("CD28 binds.", types=["protein", "dna"])
    assert bench.generator.asked == [("CD28 binds.", ("protein", "dna"))]
    assert [each.type for each in result.entities] == ["dna", "protein"]


@given(st.permutations(sorted(MENTIONS)), st.permutations(sorted(MENTIONS)))
def test_the_order_of_types_changes_nothing(one: list[str], other: list[str]) -> None:
    bench = Bench()
    first, second = bench.extract(TEXT, types=one), bench.extract(TEXT, types=other)
    assert first.entities == second.entities
    assert second.counts.cached_segments == second.counts.segments


def test_crossing_mentions_are_cached_too() -> None:
    bench = Bench()
    results = [bench.extract("CD28 receptor CD3", types=["protein", "equipment"]) for _ in range(2)]
    assert len(bench.generator.asked) == len(bench.memory.values) == 1
    assert [each.text for each in results[1].entities] == ["CD28 receptor", "receptor CD", "CD3"]
    assert results[0].entities == results[1].entities


def test_the_cache_tells_models_and_languages_apart_and_knows_no_document() -> None:
    bench = Bench()
    bench.extract("CD28 binds.", types=["dna"], id="secret-id")
    again = Bench("r2", bench.memory)
    again.extract("CD28 binds.", types=["dna"])
    again.extract("CD28 binds.", types=["dna"], lang="zh")
    assert len(again.generator.asked) == 2
    assert len(bench.memory.values) == 3
    assert all(b"secret-id" not in value for value in bench.memory.values.values())


def test_lines_are_not_made_again_for_another_selector() -> None:
    bench = Bench()
    first = bench.extract("CD28 binds.", types=["dna"])
    again = Bench(memory=bench.memory, selector="/s2")
    second = again.extract("CD28 binds.", types=["dna"])
    assert again.generator.asked == []
    assert first.key != second.key


def test_a_result_tells_what_exemplars_it_was_decided_with() -> None:
    result = Bench(chunk_segments=1).extract("CD28 binds.\r\n\r\nCD3 too.")
    assert result.exemplars == "index.1"
    assert result.key != result.model_copy(update={"exemplars": "index.2"}).key
    assert Bench().extract("").exemplars == ""


def test_a_broken_cache_is_a_warning() -> None:
    bench = Bench()
    bench.memory.broken = True
    result = bench.extract(TEXT)
    assert result.warnings == ("cache-unavailable",)
    assert result.counts.entities == 7


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"{}", b'{"tagged": 1, "presence": 2}', b'{"segment": null}'])
def test_what_the_cache_garbles_is_made_again(value: bytes) -> None:
    bench = Bench()
    bench.extract("CD28 binds.", types=["dna"])
    bench.memory.values = dict.fromkeys(bench.memory.values, value)
    result = bench.extract("CD28 binds.", types=["dna"])
    assert (result.warnings, result.counts.entities) == (("cache-unreadable",), 1)
    assert bench.extract("CD28 binds.", types=["dna"]).warnings == ()


def test_documents_at_fault_are_named() -> None:
    with pytest.raises(DocumentError, match="types: holds no known entity type at position 1") as unknown:
        Bench().extract("x", types=["dna", "secret"])
    assert unknown.value.reason == "unknown_type"
    assert "secret" not in str(unknown.value)
    with pytest.raises(DocumentError, match="types: is empty"):
        Bench().extract("x", types=[])
    with pytest.raises(DocumentError, match="BIOBRACKET_PIPELINE_MAX_CHARACTERS") as long:
        Bench(max_characters=3).extract("abcd")
    assert long.value.reason == "too_large"
    assert Bench(max_characters=3).extract("abc").counts.characters == 3


def test_a_failure_keeps_its_class_and_ends_the_rest() -> None:
    class Gone(Exception):
        pass

    class Failing(Generator):
        async def __call__(self, segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
            if any("CD0" in segment.text for segment in segments):
                raise Gone
            return await super().__call__(segments, types)

    bench = Bench(chunk_segments=1)
    failing = Failing()
    bench.pipeline._generate = failing
    with pytest.raises(Gone):
        bench.extract("\n\n".join(f"CD{n} binds." for n in range(50)), types=["dna"])
    assert len(failing.asked) < 49


def test_a_line_that_did_not_come_back_is_an_error() -> None:
    async def forgetful(segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
        return tuple(tag(segment, types) for segment in segments)[1:]

    async def confused(segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
        return tuple(tag(segment, types) for segment in reversed(segments))

    async def deaf(segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
        return tuple(tag(segment, types[1:]) for segment in segments)

    for wrong in (forgetful, confused, deaf):
        bench = Bench()
        bench.pipeline._generate = wrong
        with pytest.raises(RuntimeError, match="generation"):
            bench.extract(TEXT)
        assert bench.memory.values == {}


def test_entities_that_break_the_invariant_are_refused() -> None:
    async def shifted(candidates: tuple[Candidate, ...]) -> Selected:
        found = (await select(candidates)).entities
        return Selected(entities=tuple(each.model_copy(update={"start": each.start + 1}) for each in found))

    bench = Bench()
    bench.pipeline._select = shifted
    result = bench.extract(TEXT)
    assert (result.entities, result.counts.refused, result.warnings) == ((), 7, ("offsets-refused",))


def test_merge_keeps_the_most_confident_of_a_span() -> None:
    text = "abcdef"
    kept, refused = merge(text, [entity(0, 3, "a", text, 0.2), entity(0, 3, "a", text, 0.8), entity(0, 3, "b", text)])
    assert [(each.type, each.confidence) for each in kept] == [("a", 0.8), ("b", 0.5)]
    assert refused == 0


SPANS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from("ab"), st.floats(0, 1)).map(
        lambda t: (min(t[:2]), max(t[:2]) + 1, *t[2:])
    ),
    max_size=15,
)


@given(SPANS)
def test_parents_are_the_smallest_that_contain(spans: list[tuple[int, int, str, float]]) -> None:
    text = "abcdefghijklm"
    kept, refused = merge(text, [entity(*span[:3], text, span[3]) for span in spans])
    assert refused == 0
    assert {(each.start, each.end, each.type) for each in kept} == {span[:3] for span in spans}
    assert len(kept) == len({span[:3] for span in spans})
    assert list(kept) == sorted(kept, key=lambda each: (each.start, -each.end, each.type))
    by_id = {each.id: each for each in kept}
    for each in kept:
        sizes = [
            other.end - other.start
            for other in kept
            if other.start <= each.start
            and each.end <= other.end
            and (other.start, other.end) != (each.start, each.end)
        ]
        if not sizes:
            assert each.parent_id is None
        else:
            parent = by_id[str(each.parent_id)]
            assert parent.start <= each.start
            assert each.end <= parent.end
            assert parent.end - parent.start == min(sizes) > each.end - each.start


@given(st.text(st.sampled_from("CD28 \n。.x患者右肺腺癌[]\\😀\r\x00")), st.integers(8, 40))
def test_any_text_keeps_its_offsets(text: str, max_units: int) -> None:
    result = Bench(max_units=max_units, chunk_segments=2).extract(text, types=list(MENTIONS))
    assert all(check_offsets(text, each) for each in result.entities)
    assert result.counts.refused == 0
    assert result.counts.entities == len(result.entities)


class Selection:
    """A parser and a selector that count how often they are asked, and what the pipeline knows of their state."""

    def __init__(self) -> None:
        self.told: SelectionState | StoreError | None = SelectionState("settings", "index.1")
        self.exemplars = "index.1"
        self.asked = 0
        self.rejected: set[str] = set()

    async def state(self) -> SelectionState | None:
        if isinstance(self.told, StoreError):
            raise self.told
        return self.told

    async def parse(self, lines: tuple[TaggedLine, ...]) -> Parsed:
        self.asked += 1
        parsed = await parse(lines)
        repaired = {line.segment.index: 2 for line in lines if "CD3" in line.segment.text}
        return parsed.model_copy(update={"repairs": {"duplicate": sum(repaired.values())}, "repaired": repaired})

    async def select(self, candidates: tuple[Candidate, ...]) -> Selected:
        self.asked += 1
        entities = (await select(candidates)).entities
        return Selected(entities=tuple(e for e in entities if e.text not in self.rejected), exemplars=self.exemplars)


def deciding(
    selection: Selection, memory: Memory, local: LocalCache | None = None, revision: str = "r1", **config: int
) -> Bench:
    """A replica of the pipeline that caches decisions."""
    bench = Bench(revision, memory, **config)
    bench.pipeline = Pipeline(
        generate=bench.generator,
        parse=selection.parse,
        select=selection.select,
        cache=memory,
        model_revision=revision,
        generator_revision="g1",
        config=PipelineConfig.model_validate(config),
        state=selection.state,
        local=local,
        observe=lambda metric, value, tags=None: bench.hits.update({(tags or {})["layer"]: int(value)}),
    )
    return bench


def same(one: Extraction, other: Extraction) -> bool:
    """Whether two extractions differ in nothing but what it took to make them."""

    def made(found: Extraction) -> Extraction:
        return found.model_copy(
            update={"timings": {}, "counts": found.counts.model_copy(update={"cached_segments": 0})}
        )

    return made(one) == made(other)


def test_what_was_decided_is_not_decided_again() -> None:
    selection, memory, local = Selection(), Memory(), LocalCache(2**20)
    text = f"{TEXT}\n\nCD3 binds.\n\nCD3 binds.\n\nNothing."
    first = deciding(selection, memory, local)
    cold = first.extract(text)
    asked, generated = selection.asked, len(first.generator.asked)
    warm = first.extract(text)
    assert same(cold, warm)
    assert (cold.exemplars, cold.counts.repairs) == ("index.1", 3 * 2)
    assert (warm.counts.cached_segments, first.hits) == (warm.counts.segments, {"local": warm.counts.segments})
    assert warm.timings.keys() == {"segmentation", "cache", "merge", "total"}
    other = deciding(selection, memory, LocalCache(2**20))
    assert same(cold, other.extract(text))
    assert same(cold, other.extract(text))
    assert other.hits == {"store": warm.counts.segments, "local": warm.counts.segments}
    assert (selection.asked, len(first.generator.asked), other.generator.asked) == (asked, generated, [])
    moved = other.extract(f"CD9 too.\n\n{text}")
    assert [each.text for each in moved.entities][-len(cold.entities) :] == [each.text for each in cold.entities]
    assert moved.counts.refused == 0
    assert {text for text, _ in other.generator.asked} == {"CD9 too."}


def test_a_text_without_candidates_is_decided_whatever_the_exemplars() -> None:
    selection, memory = Selection(), Memory()
    bench = deciding(selection, memory)
    assert [bench.extract("Nothing.").exemplars for _ in range(2)] == ["", ""]
    assert selection.asked == 1


def test_what_a_reviewer_says_is_in_force_at_the_next_document() -> None:
    selection, memory = Selection(), Memory()
    replicas = [deciding(selection, memory, LocalCache(2**20)) for _ in range(2)]
    for bench in replicas:
        assert "fever" in {each.text for each in bench.extract(TEXT).entities}
    selection.rejected, selection.exemplars, selection.told = (
        {"fever"},
        "index.2",
        SelectionState("settings", "index.2"),
    )
    for bench in replicas:
        result = bench.extract(TEXT)
        assert "fever" not in {each.text for each in result.entities}
        assert result.exemplars == "index.2"
        assert bench.hits["lines"] in (0, result.counts.segments)  # the first decides anew, and need not generate
    # Taken back, under a new version: what was decided under the first one is not asked for.
    selection.rejected, selection.exemplars, selection.told = set(), "index.3", SelectionState("settings", "index.3")
    assert "fever" in {each.text for each in replicas[0].extract(TEXT).entities}


def test_a_decision_is_kept_under_the_state_it_was_made_with() -> None:
    selection, memory = Selection(), Memory()
    selection.exemplars, selection.rejected = "index.2", {"fever"}  # a change that the pipeline does not know of yet
    bench = deciding(selection, memory)
    assert bench.extract(TEXT).exemplars == "index.2"
    asked = selection.asked
    selection.told = SelectionState("settings", "index.2")
    assert bench.extract(TEXT).exemplars == "index.2"
    assert selection.asked == asked
    selection.exemplars, selection.rejected, selection.told = "index.1", set(), SelectionState("settings", "index.1")
    assert "fever" in {each.text for each in bench.extract(TEXT).entities}


def test_models_settings_languages_and_types_have_decisions_of_their_own() -> None:
    selection, memory, local = Selection(), Memory(), LocalCache(2**20)
    text = "CD28 binds."
    deciding(selection, memory, local).extract(text, types=["dna", "protein"])
    asked = selection.asked
    deciding(selection, memory, local).extract(text, types=["protein", "dna"])
    assert selection.asked == asked
    others = [("r2", "en", ["dna", "protein"]), ("r1", "zh", ["dna", "protein"]), ("r1", "en", ["dna"])]
    for count, (revision, lang, types) in enumerate(others, 1):
        result = deciding(selection, memory, local, revision).extract(text, lang=lang, types=types)
        assert selection.asked == asked + 2 * count
        assert (result.model_revision, {each.type for each in result.entities}) == (revision, set(types))
    selection.told = SelectionState("other settings", "index.1")
    deciding(selection, memory, local).extract(text, types=["dna", "protein"])
    assert selection.asked == asked + 2 * 4


def test_without_a_known_state_everything_is_decided() -> None:
    selection, memory = Selection(), Memory()
    bench = deciding(selection, memory)
    for told, warnings in ((None, ()), (StoreError("redis: gone", retryable=True), ("cache-unavailable",))):
        selection.told = told
        asked = selection.asked
        results = [bench.extract(TEXT) for _ in range(2)]
        assert {result.warnings for result in results} == {warnings}
        assert {result.exemplars for result in results} == {"index.1"}
        assert selection.asked == asked + 4
    assert not [key for key in memory.values if key.startswith("decision:")]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"tagged":"","presence":0.5}',
        b'{"entities":[{"id":"dna:0-3","start":0,"end":3,"text":"CD3","type":"dna","confidence":0.5,'
        b'"generator_confidence":0.5}],"candidates":1,"repairs":0}',
    ],
)
def test_a_decision_that_cannot_be_read_is_made_again(value: bytes) -> None:
    selection, memory = Selection(), Memory()
    cold = deciding(selection, memory).extract("CD28 binds.")
    memory.values.update({key: value for key in memory.values if key.startswith("decision:")})
    bench = deciding(selection, memory, LocalCache(2**20))
    result = bench.extract("CD28 binds.")
    assert (result.warnings, result.entities) == (("cache-unreadable",), cold.entities)
    assert same(bench.extract("CD28 binds."), cold)
    assert bench.hits == {"lines": 1, "local": 1}


def test_a_broken_store_is_a_warning_unless_all_is_here() -> None:
    selection, memory = Selection(), Memory()
    bench = deciding(selection, memory, LocalCache(2**20))
    cold = bench.extract(TEXT)
    memory.broken = True
    assert same(bench.extract(TEXT), cold)
    result = bench.extract(f"{TEXT}\n\nCD9 too.")
    assert (result.warnings, result.counts.entities) == (("cache-unavailable",), cold.counts.entities + 2)


def test_whatever_a_document_caches_or_finds_cached_is_traced() -> None:
    memory, local, traces = Memory(), LocalCache(2**20), Counter[tuple[str, str]]()

    def trace(document_id: str, keys: Sequence[str]) -> None:
        traces.update((document_id, key) for key in keys)

    bench = deciding(Selection(), memory, local)
    bench.pipeline._trace = trace
    bench.extract(TEXT, id="first")
    assert {key for _, key in traces} == memory.values.keys()
    assert set(traces.values()) == {2}  # before and after
    bench.extract(TEXT, id="second")  # out of the memory of this replica
    decisions = {key for key in memory.values if key.startswith("decision:")}
    assert {key for id_, key in traces if id_ == "second"} == decisions
    other = deciding(Selection(), memory, LocalCache(2**20))
    other.pipeline._trace = trace
    other.extract(TEXT, id="third")  # out of the store
    assert {key for id_, key in traces if id_ == "third"} == decisions


def test_what_cannot_be_traced_is_not_cached() -> None:
    memory, local = Memory(), LocalCache(2**20)
    bench = deciding(Selection(), memory, local)

    def trace(document_id: str, keys: Sequence[str]) -> None:
        raise StoreError("redis: gone", retryable=True)

    bench.pipeline._trace = trace
    assert bench.extract(TEXT).warnings == ("cache-unavailable",)
    assert memory.values == {}
    bench.pipeline._trace = None
    bench.extract(TEXT)
    assert bench.hits == {}


def test_entities_that_break_the_invariant_are_not_cached() -> None:
    selection, memory = Selection(), Memory()
    bench = deciding(selection, memory)

    async def shifted(candidates: tuple[Candidate, ...]) -> Selected:
        found = (await selection.select(candidates)).entities
        return Selected(entities=tuple(each.model_copy(update={"start": each.start + 1}) for each in found))

    bench.pipeline._select = shifted
    assert [bench.extract(TEXT).counts.refused for _ in range(2)] == [7, 7]
    assert not [key for key in memory.values if key.startswith("decision:")]


def test_no_key_holds_text() -> None:
    bench = deciding(Selection(), Memory())
    bench.extract("fever", id="secret-id")
    assert not [key for key in bench.memory.values if "fever" in key]
    assert not [value for value in bench.memory.values.values() if b"secret-id" in value]


def test_long_texts_are_the_same() -> None:
    bench = deciding(Selection(), Memory(), LocalCache(2**20))
    text = "\n\n".join(f"CD{n % 700} binds." for n in range(1500))
    cold = bench.extract(text)
    assert cold.counts.entities == 3000
    assert same(bench.extract(text), cold)


EVIDENCE = st.builds(
    Evidence, text=st.none() | st.text(), type=st.just("dna"), accepted=st.booleans(), similarity=st.floats(-1, 1)
)
KEPT = st.tuples(
    st.integers(0, 9), st.integers(1, 10), st.sampled_from(["dna", "protein"]), st.booleans(), st.floats(0, 1),
    st.floats(0, 1), st.lists(EVIDENCE, max_size=2),
)  # fmt: skip
TEXTS = ("CD28 binds.", "患者发热入院。", "No 😀 at all.", "X")


@given(
    st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8),
    st.lists(st.sampled_from(TEXTS), max_size=8),
    st.fixed_dictionaries({text: st.lists(KEPT, max_size=5) for text in TEXTS}),
    st.dictionaries(st.sampled_from(TEXTS), st.integers(1, 3)),
    st.integers(1, 3),
)
def test_a_warm_cache_changes_nothing(
    parts: list[str],
    seen: list[str],
    kept: dict[str, list[tuple[int, int, str, bool, float, float, list[Evidence]]]],
    repairs: dict[str, int],
    chunk_segments: int,
) -> None:
    by_candidate: dict[tuple[str, int, int, str], tuple[bool, float, list[Evidence]]] = {}
    spans: dict[str, set[tuple[int, int, str, float]]] = {text: set() for text in TEXTS}
    for text, of in kept.items():
        for start, length, type_, stays, confidence, generated, evidence in of:
            end = min(start + length, len(text))
            if start < end and (text, start, end, type_) not in by_candidate:
                by_candidate[text, start, end, type_] = stays, confidence, evidence
                spans[text].add((start, end, type_, generated))

    class Drawn(Selection):
        async def parse(self, lines: tuple[TaggedLine, ...]) -> Parsed:
            segments = {line.segment.index: line.segment for line in lines}
            repaired = {index: repairs[each.text] for index, each in segments.items() if each.text in repairs}
            candidates = tuple(
                Candidate(segment=each, type=type_, start=each.start + start, end=each.start + end,
                          text=each.text[start:end], generator_confidence=generated)
                for each in segments.values()
                for start, end, type_, generated in sorted(spans[each.text])
            )  # fmt: skip
            return Parsed(candidates=candidates, repairs={"duplicate": sum(repaired.values())}, repaired=repaired)

        async def select(self, candidates: tuple[Candidate, ...]) -> Selected:
            entities = []
            for c in candidates:
                within = c.start - c.segment.start, c.end - c.segment.start
                stays, confidence, evidence = by_candidate[c.segment.text, *within, c.type]
                if stays:
                    made = entity(c.start, c.end, c.type, document, confidence)
                    told = {"generator_confidence": c.generator_confidence, "evidence": tuple(evidence)}
                    entities.append(made.model_copy(update=told))
            return Selected(entities=tuple(entities), exemplars=self.exemplars)

    fields = {"types": ["dna", "protein"], "lang": "en"}
    memory, local = Memory(), LocalCache(2**20)
    warm = deciding(Drawn(), memory, local, chunk_segments=chunk_segments)
    document = "\n\n".join(seen)
    warm.extract(document, **fields)
    document = "\n\n".join(parts)
    cold = deciding(Drawn(), Memory(), chunk_segments=chunk_segments).extract(document, **fields)
    for bench in (warm, warm, deciding(Drawn(), memory, LocalCache(0), chunk_segments=3)):
        assert same(bench.extract(document, **fields), cold)
    assert all(check_offsets(document, each) for each in cold.entities)
