"""Questions are made from marked text, and answered by a model trained on them."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM

from shared.messages import Candidate, Segment
from shared.model.base_model import load_tokenizer
from shared.model.loading import load_merged
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from tests.support.generators import corpus, trained
from tests.support.tiny import make_tiny_model
from training.ablations.questions import Questions, ask
from training.data.corpora import Example, GoldMention
from training.data.labelled import PLAIN

TEXT = "a gene abc is [here]"
EXAMPLE = Example("1", TEXT, "en", (GoldMention(7, 10, "protein"),), ("protein", "dna"))


def candidate(text, start, end, type_="protein"):
    segment = Segment(document_id="d", index=0, start=50, end=50 + len(text), text=text, lang="en")
    return Candidate(
        segment=segment, type=type_, start=50 + start, end=50 + end, text=text[start:end], generator_confidence=0.5
    )


def test_the_marked_part_is_the_span(tokens, tokenizer):
    texts = Questions(tokens, 160)
    (source,) = texts.sources([EXAMPLE])
    right, *wrong = texts.items(source, random.Random(0), PLAIN)
    assert tokenizer.decode(list(right.ids)) == "<bos>a gene [abc] is \\[here\\]\nProtein:"
    assert right.decisions == ((len(right.ids) - 1, (tokens.open[0], tokens.absent[0]), 0),)
    assert wrong
    assert all(item.decisions[0][2] == 1 for item in wrong)


def test_candidates_are_asked_in_their_order(tmp_path, tokens):
    base = make_tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    asked = [candidate(TEXT, 7, 10), candidate("abc", 0, 3), candidate(TEXT, 2, 10, "dna")]
    together = ask(model, tokens, asked)
    assert together == pytest.approx([ask(model, tokens, [one])[0] for one in asked], abs=1e-4)
    assert together == pytest.approx(ask(model, tokens, asked, at_once=1), abs=1e-4)
    assert ask(model, tokens, []) == []


@pytest.mark.slow
def test_a_model_learns_to_answer(tmp_path):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base")
    settings = Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")
    reports = []
    more = {"max_tokens": 60_000, "learning_rate": 3e-3, "scheme": "question", "measure_every": 0}
    out = trained(tmp_path / "out", settings, reports.append, **more)
    assert reports[-1].loss < 0.6 * reports[0].loss
    model = load_merged(settings, out, "float32")
    tokens = CopyTokens(load_tokenizer(settings))
    right = [candidate(f"a gene {name} is", 7, 10) for name in ("abc", "cde", "fgh")]
    wrong = [candidate("a gene abc is", 2, 10), candidate("a gene cde is", 7, 13)]
    told = ask(model, tokens, [*right, *wrong])
    assert min(told[:3]) > max(told[3:])
