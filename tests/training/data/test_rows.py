import dataclasses
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.text.grammar import CopyTokens
from tests.support.tiny import make_tiny_model
from training.data.corpora import Example, GoldMention
from training.data.labelled import PLAIN, Texts, Variation
from training.data.rows import NAME, Builder, arrays, grouped, line_loss, on_device, padded, states

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


def test_few_shapes_have_the_same_loss_and_gradient(tokens):
    """Batches for CUDA graphs: padded to one of few shapes, which changes neither the loss nor what is learnt."""
    texts = Texts(tokens, 160, TYPES)
    items = [i for s in texts.sources(EXAMPLES) for i in texts.items(s, random.Random(0), PLAIN)]
    known = {"protein": 0, "rna": 1}
    found = []
    for few in (False, True):
        batch = arrays(items, known, few=few)
        rows = on_device(padded(batch, 1024) if few else batch, torch.device("cpu"), few=few)
        # As a model would: a state depends on what stands before, not on the row's length.
        table = torch.arange(600.0)[:, None].mul(torch.arange(1.0, 9.0)).sin().requires_grad_()
        hidden = table[rows.ids % 600].cumsum(1).flatten(0, 1)
        loss = line_loss(hidden, torch.arange(8000.0).reshape(-1, 8).cos()[torch.arange(1000)].repeat(300, 1), rows)
        loss.backward()
        found.append((loss.detach(), table.grad))
    (plain, gradient), (few_, gradient_) = found
    torch.testing.assert_close(plain, few_)
    torch.testing.assert_close(gradient, gradient_)


def test_batches_of_few_shapes_are_of_few_shapes(tokens):
    texts = Texts(tokens, 160, TYPES)
    sources = texts.sources(EXAMPLES * 60)
    builder = Builder(sources, texts, Variation(), 512, {"protein": 0, "rna": 1}, few=True)
    found = list(builder.batches(range(120), 5, 0))
    shapes = {
        tuple(v.shape for f in dataclasses.fields(b) if isinstance(v := getattr(b, f.name), np.ndarray)) for b in found
    }
    assert len(found) > 10
    assert any(one.marked for s in sources for one in texts.items(s, random.Random(5), Variation()))
    assert len(shapes) <= len({shape[0] for shape in shapes}) <= 4  # of every array, not of the ids alone
    assert all(rows * length <= 512 for rows, length in {shape[0] for shape in shapes})
