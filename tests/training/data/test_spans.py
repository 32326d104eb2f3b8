import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.selectors import config
from training.data.candidates import digest
from training.data.corpora import Example, GoldMention
from training.data.spans import items, pack

TYPES = ("dna", "protein", "rna")
EXAMPLE = Example(
    "1",
    "The CD28 gene binds. IL-2 does not.",
    "en",
    (GoldMention(4, 8, "protein"), GoldMention(4, 13, "dna"), GoldMention(21, 25, "protein")),
    ("protein", "dna"),
)


@pytest.fixture(scope="module")
def item(tokens):
    (made,) = items([EXAMPLE], tokens, TYPES, 160)
    return made


def said(item, span, tokenizer):
    """The text before, in and after a span, by its boundary tokens."""
    before, first, last, after = item.tokens.boundaries(span.start, span.end)
    ids = list(item.tokens.ids)
    return [tokenizer.decode(part) for part in (ids[before:first], ids[first : last + 1], ids[last + 1 : after + 1])]


def test_boundaries_are_those_of_the_mention(item, tokenizer):
    assert tokenizer.decode(list(item.tokens.ids)) == "<bos>" + EXAMPLE.text + "\n"
    found = {(said(item, span, tokenizer)[1].strip(), TYPES[span.type]) for span in item.gold}
    assert found == {("CD28", "protein"), ("CD28 gene", "dna"), ("IL-2", "protein")}
    assert said(item, item.gold[0], tokenizer) == ["e", " CD28", " "]


def test_a_mention_at_either_end_has_tokens_outside_it(tokens, tokenizer):
    example = Example("1", "CD28", "en", (GoldMention(0, 4, "protein"),), ("protein",))
    (item,) = items([example], tokens, TYPES, 160)
    assert said(item, item.gold[0], tokenizer) == ["<bos>", "CD28", "\n"]


@given(st.data())
def test_negatives_are_wrong_and_distinct(item, data):
    counts = {name: data.draw(st.integers(0, 5)) for name in ("boundary", "inner", "wrong_types", "elsewhere")}
    seed, given = data.draw(st.integers()), config(**counts)
    drawn = item.drawn(given, random.Random(seed))
    assert drawn == item.drawn(given, random.Random(seed))
    gold = {(span.start, span.end, span.type) for span in item.gold}
    places = [(span.start, span.end, span.type) for span in drawn.spans]
    assert len(set(places)) == len(places)
    assert len(places) <= len(gold) * (1 + given.boundary + given.inner + given.wrong_types) + given.elsewhere
    assert {place for place, span in zip(places, drawn.spans, strict=True) if span.right} == gold
    for start, end, type_ in places:
        assert 0 <= start < end <= len(item.tokens.first)
        assert type_ in item.types  # of one that the corpus does not annotate nothing is known


def test_a_generators_mistakes_are_always_among_the_negatives(tokens):
    wrong = [
        GoldMention(4, 13, "protein"),
        GoldMention(21, 25, "protein"),
        GoldMention(4, 8, "rna"),
        GoldMention(5, 8, "dna"),
    ]
    wrong += [GoldMention(4, 8, "disease")]
    (item,) = items([EXAMPLE], tokens, TYPES, 160, {digest(EXAMPLE.text): wrong, digest("another"): wrong})
    # Not what is a mention, is of a type that is not known, or ends within a piece.
    assert {(s.start, s.end, TYPES[s.type]) for s in item.mistakes} == {(1, 4, "protein"), (1, 3, "rna")}
    none = dict.fromkeys(("boundary", "inner", "wrong_types", "elsewhere"), 0)
    assert item.drawn(config(**none), random.Random(0)).spans == (*item.gold, *item.mistakes)
    drawn = item.drawn(config(boundary=30, inner=30), random.Random(0)).spans
    assert len({(s.start, s.end, s.type) for s in drawn}) == len(drawn)
    assert items([EXAMPLE], tokens, TYPES, 160, {digest("another"): wrong})[0].mistakes == ()


def test_a_batch_points_at_the_same_tokens(item):
    drawn = item.drawn(config(), random.Random(1))
    size = 2 * len(item) + 100
    batch = pack([drawn, drawn], size)
    assert batch.ids.shape == batch.positions.shape == (size,)
    assert batch.tokens == 2 * len(item)
    half = len(drawn.spans)
    assert (batch.at[half:] == batch.at[:half] + len(item)).all()
    first = drawn.spans[0]
    assert batch.at[0].tolist() == list(item.tokens.boundaries(first.start, first.end))
    assert batch.right.tolist() == 2 * [span.right for span in drawn.spans]
    assert batch.layout[0].mask.all()
    assert batch.layout[0].window is None
    assert pack([drawn], size, window=4).layout[0].window.sum() < len(item) ** 2
    with pytest.raises(ValueError, match="do not fit"):
        pack([drawn], len(item) - 1)


def test_a_segment_without_spans_can_be_packed(item):
    assert pack([item], len(item)).at.shape == (0, 4)
