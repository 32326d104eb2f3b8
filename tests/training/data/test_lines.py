import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.corpora import Example, GoldMention
from training.data.lines import SegmentLines, TargetLine, items, pack

EXAMPLE = Example(
    "1",
    "The CD28 gene binds. IL-2 does not.",
    "en",
    (GoldMention(4, 8, "protein"), GoldMention(4, 13, "dna"), GoldMention(21, 25, "protein")),
    ("protein", "dna", "rna"),
)


@pytest.fixture(scope="module")
def item(per_type_tokens):
    (made,) = items([EXAMPLE], per_type_tokens, 160)
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


def test_long_texts_become_several_items(per_type_tokens, tokenizer):
    found = items([EXAMPLE], per_type_tokens, 8)
    assert len(found) == 2
    assert "".join(tokenizer.decode(i.prefix[1:-1]) for i in found).replace(" ", "") == EXAMPLE.text.replace(" ", "")


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


def make(size, absent=False):
    return SegmentLines((1,) * size, (TargetLine((1,), ((0, (1, 2), 0),), absent=absent),))


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.floats(0, 1), st.integers())
def test_thinning_keeps_every_present_line(absent, negatives, seed):
    item = SegmentLines((1,), tuple(TargetLine((i,), (), absent=a) for i, a in enumerate(absent)))
    kept = item.thinned(negatives, random.Random(seed)).lines
    assert {line for line in item.lines if not line.absent} <= set(kept)
    assert 1 <= len(kept) <= len(item.lines)
    assert list(kept) == sorted(kept, key=lambda line: line.ids)
    assert item.thinned(1.0, random.Random(seed)) == item
