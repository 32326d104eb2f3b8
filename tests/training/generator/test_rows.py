import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.text.grammar import CopyTokens
from tests.support.tiny import make_tiny_model
from training.data.corpora import Example, GoldMention
from training.data.labelled import PLAIN, Texts, Variation
from training.generator.rows import NAME, Builder, arrays, grouped, line_loss, on_device, states

TYPES = ("protein", "rna")
EXAMPLES = [
    Example("1", "The CD28 gene", "en", (GoldMention(4, 8, "protein"),), TYPES),
    Example("2", "no gene here is found at all", "en", (GoldMention(3, 7, "rna"),), TYPES),
]


@torch.no_grad()
@pytest.mark.parametrize("window", [512, 24])
def test_the_loss_is_that_of_the_plain_model(tmp_path, window):
    """Rows with padding, few logits, a sliding window: the same number as single sequences and the whole vocabulary."""
    folder = make_tiny_model(tmp_path, window=window)
    plain, rows = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2))
    rows.set_attn_implementation(NAME)
    texts = Texts(CopyTokens(AutoTokenizer.from_pretrained(folder)), 160, TYPES)
    items = [i for s in texts.sources(EXAMPLES) for i in texts.items(s, random.Random(0), PLAIN)]
    batch = on_device(arrays(items, {"protein": 0, "rna": 1}), torch.device("cpu"))
    losses = []
    for one in items:
        logits = plain(torch.tensor([one.ids])).logits[0]
        losses += [-torch.log_softmax(logits[at, list(options)], -1)[right] for at, options, right in one.decisions]
    loss = line_loss(states(rows.get_decoder(), batch.ids), rows.get_output_embeddings().weight, batch)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)
    assert batch.tokens == sum(map(len, items))


def test_groups_fit_and_leave_nothing_out(tokens):
    texts = Texts(tokens, 160, TYPES)
    draw = random.Random(1)
    items = [i for s in texts.sources(EXAMPLES * 20) for i in texts.items(s, draw, Variation())]
    groups = grouped(items, 400, draw)
    assert sorted(map(id, (i for group in groups for i in group))) == sorted(map(id, items))
    assert all(len(group) * max(map(len, group)) <= 400 for group in groups)
    assert grouped(items, 10, draw) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_the_seed_alone(tokens, workers):
    texts = Texts(tokens, 160, TYPES)
    sources = texts.sources(EXAMPLES * 30)
    builder = Builder(sources, texts, Variation(), 300, {"protein": 0, "rna": 1})
    here = list(builder.batches(range(60), 5, 0))
    there = list(builder.batches(range(60), 5, workers))
    assert len(here) == len(there) > 5
    assert all((a.ids == b.ids).all() and (a.marked == b.marked).all() for a, b in zip(here, there, strict=True))
