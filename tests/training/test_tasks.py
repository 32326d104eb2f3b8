import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.corpora import Example, Mention
from training.tasks import Item, Line, Mixer, block_mask, grouped, items, pack, shares

EXAMPLE = Example(
    "1",
    "The CD28 gene binds. IL-2 does not.",
    "en",
    (Mention(4, 8, "protein"), Mention(4, 13, "dna"), Mention(21, 25, "protein")),
    ("protein", "dna", "rna"),
)


@pytest.fixture(scope="module")
def item(tokens):
    (made,) = items([EXAMPLE], tokens, 160)
    return made


def test_an_item_says_what_the_gold_says(item, tokenizer):
    protein, dna, rna = item.lines
    assert tokenizer.decode(item.prefix) == "<bos>" + EXAMPLE.text + "\n"
    # Tokens after the last decision are left out, so a line may stop before its end.
    assert "Protein:The [CD28] gene binds. [IL-2] does not.".startswith(tokenizer.decode(protein.ids))
    assert "DNA:The [CD28 gene] binds. IL-2 does not.".startswith(tokenizer.decode(dna.ids))
    assert tokenizer.decode(rna.ids) == "RNA:"
    assert len(rna.decisions) == 1


def test_a_decision_follows_its_token(item, tokenizer):
    protein = item.lines[0]
    opened = [
        tokenizer.decode(protein.ids[: before + 1])
        for before, ids, right in protein.decisions
        if tokenizer.decode([ids[right]]) == " ["
    ]
    assert opened == ["Protein:The", "Protein:The [CD28] gene binds."]


def test_long_texts_become_several_items(tokens, tokenizer):
    found = items([EXAMPLE], tokens, 8)
    assert len(found) == 2
    assert "".join(tokenizer.decode(i.prefix[1:-1]) for i in found).replace(" ", "") == EXAMPLE.text.replace(" ", "")


def test_the_mask_lets_lines_share_the_prefix_and_nothing_else():
    mask = block_mask(2, [2, 1])
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_a_batch_has_its_size_and_every_decision(item):
    size = 3 * len(item) + 300
    batch = pack([item, item], size)
    assert batch.ids.shape == batch.positions.shape == (size,)
    assert batch.tokens == 2 * len(item)
    assert len(batch.right) == 2 * sum(len(line.decisions) for line in item.lines)
    assert batch.valid.gather(1, batch.right[:, None]).all()
    assert batch.layout[0].start == 0
    assert [b.end for b in batch.layout[:-1]] == [b.start for b in batch.layout[1:]]
    assert batch.layout[-1].end == size
    assert torch.equal(batch.positions[: len(item)], batch.positions[len(item) : 2 * len(item)])


def test_too_much_for_a_batch_is_refused(item):
    with pytest.raises(ValueError, match="do not fit"):
        pack([item], len(item) - 1)


def test_the_mixer_keeps_shares_and_size(item):
    mixer = Mixer({"a": [item], "b": [item]}, {"a": 3.0, "b": 1.0}, 4 * len(item) + 1, seed=1)
    groups = iter(mixer)
    for _ in range(50):
        assert sum(len(i) for i in next(groups)) <= 4 * len(item) + 1
    assert mixer.seen["a"] / mixer.seen["b"] == pytest.approx(3.0, rel=0.05)


def test_the_mixer_leaves_out_what_fits_no_batch(item):
    assert Mixer({"a": [item, make(1)]}, {"a": 1.0}, len(item) - 1, seed=1).skipped == 1
    with pytest.raises(ValueError, match="batch_tokens"):
        Mixer({"a": [item]}, {"a": 1.0}, len(item) - 1, seed=1)


def make(size, absent=False):
    return Item((1,) * size, (Line((1,), ((0, (1, 2), 0),), absent=absent),))


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.integers(1, 50), st.none() | st.floats(0.01, 0.2)), min_size=1
    ),
    st.floats(1.0, 10.0),
)
def test_shares_sum_to_one_and_keep_the_order_of_sizes(drawn, temperature):
    corpora = {name: [make(size)] for name, (size, _) in drawn.items()}
    found = shares(corpora, {name: share for name, (_, share) in drawn.items()}, temperature)
    assert sum(found.values()) == pytest.approx(1.0)
    free = sorted((size, found[name]) for name, (size, share) in drawn.items() if share is None)
    assert [s for _, s in free] == pytest.approx(sorted(s for _, s in free))


def test_temperature_evens_shares_out():
    corpora = {"small": [make(9)], "large": [make(99)]}
    by_size = shares(corpora, {}, 1.0)
    assert by_size["large"] == pytest.approx(100 / 110)
    assert by_size["large"] > shares(corpora, {}, 3.0)["large"] > 0.5


@given(st.lists(st.integers(1, 9), max_size=20))
def test_groups_fit_and_hold_every_item_in_order(sizes):
    found = list(grouped([make(size) for size in sizes], 10))
    assert [len(item.prefix) for group in found for item in group] == sizes
    assert all(0 < sum(map(len, group)) <= 10 for group in found)
    assert all(sum(map(len, group)) + len(after[0]) > 10 for group, after in pairwise(found))


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.floats(0, 1), st.integers())
def test_thinning_keeps_every_present_line(absent, negatives, seed):
    item = Item((1,), tuple(Line((i,), (), absent=a) for i, a in enumerate(absent)))
    kept = item.thinned(negatives, random.Random(seed)).lines
    assert {line for line in item.lines if not line.absent} <= set(kept)
    assert 1 <= len(kept) <= len(item.lines)
    assert list(kept) == sorted(kept, key=lambda line: line.ids)
    assert item.thinned(1.0, random.Random(seed)) == item
