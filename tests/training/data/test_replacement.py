import random

from hypothesis import given
from hypothesis import strategies as st

from training.data.corpora import Example, GoldMention
from training.data.replacement import Replacements, outermost

TYPES = ("protein", "dna")
TEXT = "The CD28 gene binds IL-2."
MENTIONS = (GoldMention(4, 8, "protein"), GoldMention(4, 13, "dna"), GoldMention(20, 24, "protein"))
OTHER = Example(
    "2", "EGFR promoter and p53", "en", (GoldMention(0, 13, "dna"), GoldMention(0, 4, "protein"),
                                        GoldMention(18, 21, "protein")), TYPES,
)  # fmt: skip


def test_a_mention_brings_those_inside_it_and_moves_those_behind_it():
    made = Replacements([OTHER])
    found = {made.replaced(TEXT, MENTIONS, (TYPES, "en"), random.Random(seed))[0] for seed in range(40)}
    assert found == {
        TEXT,
        "The EGFR promoter binds IL-2.",
        "The CD28 gene binds p53.",
        "The EGFR promoter binds p53.",
    }
    for seed in range(40):
        text, mentions = made.replaced(TEXT, MENTIONS, (TYPES, "en"), random.Random(seed))
        assert {(text[m.start : m.end], m.type) for m in mentions} in (
            {(dna, "dna"), (dna.split()[0], "protein"), (protein, "protein")}
            for dna in ("CD28 gene", "EGFR promoter")
            for protein in ("IL-2", "p53")
        )


def test_nothing_comes_from_another_guideline():
    made = Replacements([OTHER])
    for guideline in (((*TYPES, "rna"), "en"), (TYPES, "zh")):
        for seed in range(20):
            assert made.replaced(TEXT, MENTIONS, guideline, random.Random(seed)) == (TEXT, list(sorted_(MENTIONS)))


def sorted_(mentions):
    return sorted(mentions, key=lambda m: (m.start, -m.end, m.type))


spans = st.tuples(st.integers(0, 11), st.integers(1, 6), st.sampled_from(TYPES))


@given(st.lists(spans, max_size=6), st.lists(spans, max_size=6), st.integers())
def test_every_span_says_what_it_said_or_what_took_its_place(given_, others, seed):
    """What is not replaced keeps its words; crossing mentions are never torn."""
    text, other = "abcdefghijklmnopq", "ABCDEFGHIJKLMNOPQ"
    mentions = [GoldMention(start, start + length, type_) for start, length, type_ in dict.fromkeys(given_)]
    theirs = tuple(GoldMention(start, start + length, type_) for start, length, type_ in dict.fromkeys(others))
    made = Replacements([Example("1", other, "en", theirs, TYPES)])
    new, found = made.replaced(text, mentions, (TYPES, "en"), random.Random(seed))
    assert all(0 <= m.start < m.end <= len(new) for m in found)
    known = {(text[m.start : m.end], m.type) for m in mentions} | {(other[m.start : m.end], m.type) for m in theirs}
    mixed = {(m.start, m.end) for m in mentions} - {(start, end) for start, end, _ in outermost(mentions)}
    for m in found:
        said = new[m.start : m.end]
        if said.islower() or said.isupper():
            assert (said, m.type) in known
        else:  # around one that was replaced
            assert mixed
    if new.islower():
        assert new == text
        assert sorted_(set(found)) == sorted_(set(mentions))
