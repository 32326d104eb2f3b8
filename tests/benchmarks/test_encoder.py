from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.encoder import LONGEST, Encoder, configuration
from services.generation.engine import TagRequest
from shared.messages import Segment
from shared.text.pieces import split
from tests.support.tiny import make_tiny_model

TEXTS = ("Activation of the CD28 receptor.", "a", "右肺下叶腺癌 with EGFR 突变")
TYPES = ("protein", "disease")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("tiny")))
    torch.manual_seed(0)
    small = configuration(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    return Encoder(tokenizer, small, torch.float32)


def request(i: int, text: str) -> TagRequest:
    return TagRequest(Segment(document_id="d", index=i, start=0, end=len(text), text=text, lang="en"), TYPES)


def test_every_span_and_type_has_a_score_that_padding_does_not_change(encoder: Encoder) -> None:
    requests = [request(i, text) for i, text in enumerate(TEXTS)]
    together = encoder.scores(requests)
    words = [len(split(text)) for text in TEXTS]
    assert together.shape == (len(TEXTS), max(words), LONGEST, len(TYPES))
    assert together.isfinite().all()
    for i, one in enumerate(requests):
        alone = encoder.scores([one])
        whole = [k for k in range(words[i]) if k + LONGEST <= words[i]] or [0]
        for first in whole:
            last = min(LONGEST, words[i] - first)
            torch.testing.assert_close(together[i, first, :last], alone[0, first, :last], atol=1e-4, rtol=1e-4)


def test_it_answers_every_segment(encoder: Encoder) -> None:
    lines = encoder.tag([request(i, text) for i, text in enumerate(TEXTS * 10)])
    assert [line.segment.text for line in lines] == list(TEXTS * 10)
    assert not any(line.tagged for line in lines)


def test_it_has_the_size_of_the_one_that_people_deploy() -> None:
    with torch.device("meta"):
        model = Encoder(None, configuration(), torch.float32)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert 190 < millions < 230  # GLiNER medium: 195 to 209 million
