from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from services.cli import rendering
from services.cli.rendering import LiveCounts, entities_table, mark, note, setting, summary
from shared.entity_types import TYPES
from shared.messages import Entity, Extraction, entity_id


def entity(text: str, start: int, end: int, type_: str = "disease", parent: str | None = None) -> Entity:
    return Entity(
        id=entity_id(type_, start, end),
        start=start,
        end=end,
        text=text[start:end],
        type=type_,
        confidence=0.5,
        generator_confidence=0.5,
        parent_id=parent,
    )


def extraction(text: str, *entities: Entity, lang: str = "en", id_: str = "note") -> Extraction:
    return Extraction.model_validate(
        {
            "document_id": id_,
            "text_sha256": "0" * 64,
            "lang": lang,
            "types": ("disease",),
            "entities": entities,
            "model_revision": "0" * 16,
        }
    )


def shown(what: object) -> str:
    console = Console(width=200, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_nested_mentions_are_marked_inside_their_parents() -> None:
    text = "the CD28 surface receptor [x]"
    marked = mark(text, [entity(text, 4, 25, "protein"), entity(text, 4, 8, "protein"), entity(text, 9, 16, "body")])
    assert marked.plain == "the ⟦⟦CD28⟧protein ⟦surface⟧body receptor⟧protein [x]"


def test_crossing_and_equal_spans() -> None:
    text = "abcdef"
    assert mark(text, [entity(text, 0, 4, "dna"), entity(text, 2, 6, "rna")]).plain == "⟦ab⟦cd⟧dnaef⟧rna"
    assert mark(text, [entity(text, 0, 6, "dna"), entity(text, 0, 6, "rna")]).plain == "⟦⟦abcdef⟧rna⟧dna"


def test_neighbouring_spans_close_before_they_open() -> None:
    text = "右肺腺癌"
    assert mark(text, [entity(text, 0, 2, "body"), entity(text, 2, 4)]).plain == "⟦右肺⟧body⟦腺癌⟧disease"


def test_control_characters_cannot_steer_the_terminal() -> None:
    plain = mark("a\x1b[31mb\x00\r\nc\x9b", []).plain
    assert plain == "a␛[31mb␀\nc�"


def test_long_text_is_shortened_around_its_entities() -> None:
    text = "x" * 10_000 + "asthma" + "y" * 10_000
    plain = mark(text, [entity(text, 10_000, 10_006)], context=3).plain
    assert plain == " … xxx⟦asthma⟧diseaseyyy … "
    many = [entity(text, i, i + 1) for i in range(0, 20_000, 500)]
    plain = mark(text, many, max_chars=200, context=10).plain
    assert len(plain) < 1000
    assert re.search(r"\((\d+) more entities in parts not shown\)", plain)
    assert len(mark(text, [], max_chars=200).plain) < 220


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


@given(text=st.text(st.sampled_from("ab 右肺[]\n"), max_size=60), spans=SPANS, max_chars=st.sampled_from([5, 20, 100]))
def test_every_shown_entity_is_marked_and_no_text_is_changed(
    text: str, spans: list[tuple[int, int]], max_chars: int
) -> None:
    keys = list(TYPES)
    entities = [entity(text, s, e, keys[i]) for i, (s, e) in enumerate(spans) if s < e <= len(text)]
    plain = mark(text, entities, max_chars=max_chars, context=2).plain
    hidden = re.search(r"\n\((\d+) more entities in parts not shown\)$", plain)
    if hidden:
        plain = plain[: hidden.start()]
    assert plain.count("⟦") == plain.count("⟧") == len(entities) - int(hidden[1] if hidden else 0)
    if len(text) <= max_chars:
        assert hidden is None
        assert re.sub("⟦|⟧(" + "|".join(sorted(keys, key=len, reverse=True)) + ")", "", plain) == text


def test_note_tells_what_it_holds() -> None:
    text = "右肺腺癌[1]"
    inner = entity(text, 0, 2, "body", parent="disease:0-4")
    out = shown(note(text, extraction(text, entity(text, 0, 4), inner, lang="zh")))
    assert "zh, 7 characters, 2 entities, 1 nested" in out
    assert "⟦⟦右肺⟧body腺癌⟧disease[1]" in out
    assert "(no entities)" in shown(note("x", extraction("x")))


def test_entities_are_listed_with_nested_ones_indented() -> None:
    text = "右肺腺癌"
    inner = entity(text, 0, 2, "body", parent="disease:0-4")
    rows = shown(entities_table(extraction(text, inner, entity(text, 0, 4)))).splitlines()
    assert rows[1].endswith(" 右肺腺癌") or "右肺腺癌" in rows[1]
    assert "  右肺" in rows[2]
    assert "0.50" in rows[2]


def test_summary_counts_by_type_and_language() -> None:
    text = "右肺腺癌"
    chinese = extraction(text, entity(text, 0, 4), entity(text, 0, 2, "body", "disease:0-4"), lang="zh")
    english = extraction("flu", entity("flu", 0, 3))
    rows = {
        cells[0]: cells[1:]
        for line in shown(summary([chinese, english], 2.0)).splitlines()
        if len(cells := [c.strip() for c in re.split("[│┃]", line.strip("│┃"))]) == 4
    }
    assert rows["disease"] == ["1", "1", "2"]
    assert rows["body"] == ["0", "1", "1"]
    assert rows["entities"] == ["1", "2", "3"]
    assert rows["nested entities"] == ["0", "1", "1"]
    assert rows["documents"] == ["1", "1", "2"]
    assert rows["entities per second"][-1] == "1.5"
    assert "entities" in shown(summary([], 0.0))


def test_counts_and_settings() -> None:
    counts = LiveCounts(documents=3, entities=14, lag=2, rate=0.5)
    assert str(counts) == "documents 3, entities 14, lag 2, rate 0.50 documents per second"
    assert "14" in shown(rendering.counts_table(counts))
    assert str(LiveCounts(documents=3, entities=14, lag=2)) == "documents 3, entities 14, lag 2"
    lines = shown(setting("BIOBRACKET_X", "[1]", "One [thing].")).splitlines()
    assert [line.rstrip() for line in lines] == ["BIOBRACKET_X=[1]", "    One [thing]."]
