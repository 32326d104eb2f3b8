from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shared.model.attention import use_packed_attention
from shared.model.base_model import load_tokenizer
from shared.model.body import Packed
from shared.selection.span_encoder import SpanEncoder, SpanHead
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from tests.support.tiny import make_tiny_model
from training.data.candidates import digest
from training.data.corpora import Example, GoldMention
from training.selector.exemplars import of_corpus

EXAMPLES = [
    Example("1", "The CD28 gene.", "en", (GoldMention(4, 8, "protein"), GoldMention(4, 13, "dna")), ("protein", "dna")),
    Example("2", "患者因右肺腺癌入院。", "zh", (GoldMention(3, 7, "disease"),), ("disease",)),
    Example("3", "Nothing.", "en", (), ("protein",)),
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SpanEncoder:
    base: Path = make_tiny_model(tmp_path_factory.mktemp("tiny"))
    model = use_packed_attention(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval())
    tokens = CopyTokens(load_tokenizer(Settings(base_model=str(base))))
    head = SpanHead(model.config.hidden_size, ("dna", "protein"), 16, 8).eval().requires_grad_(False)
    return SpanEncoder(Packed(model), head, tokens, 4096)


@pytest.mark.parametrize("texts", [True, False])
def test_mentions_are_accepted_and_other_spans_rejected(encoder, tokens, texts):
    found = list(of_corpus("toy", EXAMPLES, encoder, tokens, max_units=160, texts=texts))
    exemplars = [exemplar for _, batch in found for exemplar in batch]
    vectors = np.concatenate([batch for batch, _ in found])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    assert len(vectors) == len(exemplars)
    right = {e.id for e in exemplars if e.accepted}
    assert right == {"toy:0:4-8:protein", "toy:0:4-13:dna"}  # the encoder knows no disease
    assert any(not e.accepted for e in exemplars)
    assert len({e.id for e in exemplars}) == len(exemplars)
    for exemplar in exemplars:
        _, text, span, _ = exemplar.id.split(":")
        start, end = map(int, span.split("-"))
        assert exemplar.text == (EXAMPLES[int(text)].text[start:end] if texts else None)
        assert exemplar.source == "toy"


def test_the_same_corpus_gives_the_same_exemplars(encoder, tokens):
    first, second = (list(of_corpus("toy", EXAMPLES, encoder, tokens, max_units=160, texts=True)) for _ in range(2))
    assert [batch for _, batch in first] == [batch for _, batch in second]


def test_a_generators_mistakes_become_the_rejected_exemplars(encoder, tokens):
    mistakes = {digest(EXAMPLES[0].text): [GoldMention(0, 8, "protein"), GoldMention(4, 8, "protein")]}
    found = list(of_corpus("toy", EXAMPLES, encoder, tokens, max_units=160, texts=False, mistakes=mistakes))
    assert {(e.id, e.accepted) for _, batch in found for e in batch} == {
        ("toy:0:4-8:protein", True),
        ("toy:0:4-13:dna", True),
        ("toy:0:0-8:protein", False),
    }
