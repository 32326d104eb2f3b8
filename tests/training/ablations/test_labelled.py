import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.text.pieces import split
from training.ablations.labelled import MAX_DEPTH, Walk, header, items, line
from training.data.corpora import Example, Mention
from training.data.lines import pack

TYPES = ("protein", "dna", "cell_line", "cell_type")


def walked(walk, ids):
    """The walk after these tokens, each of which must be an option."""
    for token in ids:
        assert token in walk.options()
        walk.feed(token)
    return walk


def test_a_line_says_what_the_gold_says(tokens, tokenizer):
    example = Example("1", "The CD28 gene of T cells.", "en", (Mention(4, 8, "protein"), Mention(4, 13, "dna")), TYPES)
    (item,) = items([example], tokens, 160)
    (said,) = item.lines
    whole = "Protein, DNA, Cell line, Cell type:The [[CD28 | Protein] gene | DNA] of T cells."
    assert tokenizer.decode(item.prefix) == "<bos>" + example.text + "\n"
    assert whole.startswith(tokenizer.decode(said.ids))
    # The type of each of the two mentions is a decision of its own, after the bar.
    types = [tokenizer.decode(said.ids[: before + 1]) for before, ids, _ in said.decisions]
    assert sum(text.endswith(" | ") for text in types) == 2


def test_a_text_without_mentions_has_one_decision(tokens):
    (item,) = items([Example("1", "Nothing here.", "en", (), TYPES)], tokens, 160)
    (said,) = item.lines
    assert said.absent
    assert len(said.decisions) == 1
    assert said.ids == header(tokens, TYPES, "en")


@st.composite
def typed_spans(draw, pieces):
    found = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, pieces - 1))
        found.append((start, draw(st.integers(start + 1, pieces)), draw(st.sampled_from(TYPES))))
    return found


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_what_a_line_says_is_read_back(tokens, data):
    text = data.draw(st.sampled_from(["T | [cells] of\\ IL-2, 1 2", "|", "急性白血病 (AML) 患者|", "a  b\n c"]))
    pieces = split(text)
    spans = data.draw(typed_spans(len(pieces)))
    ids, decisions = line(Walk(tokens, pieces, TYPES, "en"), spans)
    walk = walked(Walk(tokens, pieces, TYPES, "en"), ids)
    assert [d[0] for d in decisions] == sorted({d[0] for d in decisions})
    # The tokens that were left out are those that nothing had to be decided for, and the last decision's own.
    at, options, right = decisions[-1]
    assert at == len(ids)
    walk.feed(options[right])
    while not walk.done:
        (only,) = walk.options()
        walk.feed(only)
    assert set(walk.spans) <= set(spans)
    crossing = any(a[0] < b[0] < a[1] < b[1] for a in spans for b in spans)
    if not crossing and len(set(spans)) <= MAX_DEPTH:
        assert set(walk.spans) == set(spans)


def test_every_way_through_ends(tokens):
    draw = torch.Generator().manual_seed(4)
    pieces = split("The [CD28] | gene")
    for _ in range(20):
        walk = Walk(tokens, pieces, TYPES, "en")
        steps = 0
        while not walk.done:
            options = walk.options()
            walk.feed(options[int(torch.randint(len(options), (1,), generator=draw))])
            steps += 1
        assert walk.options() == []
        assert all(0 <= start < end <= len(pieces) for start, end, _ in walk.spans)
        assert steps < 2000


def test_labelled_items_are_packed_like_others(tokens):
    example = Example("1", "The CD28 gene", "en", (Mention(4, 8, "protein"),), TYPES)
    batch = pack(items([example], tokens, 160), 128)
    assert batch.options.shape == batch.valid.shape
    assert bool(batch.valid[torch.arange(len(batch.right)), batch.right].all())
