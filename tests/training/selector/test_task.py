import json

import pytest
import torch
from safetensors.torch import load_file

from shared.errors import SelectorError
from shared.messages import Candidate, Segment
from shared.selection.span_encoder import SpanEncoder, encoder_revision
from shared.settings import Settings
from tests.support.generators import corpus
from tests.support.selectors import trained
from tests.support.tiny import make_tiny_model
from training.data.candidates import Row, digest, write
from training.data.corpora import read
from training.selector.task import geometry


@pytest.fixture
def settings(tmp_path):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base")
    return Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")


def candidate(text, start, end, type_="protein"):
    segment = Segment(document_id="d", index=0, start=100, end=100 + len(text), text=text, lang="en")
    return Candidate(
        segment=segment,
        type=type_,
        start=100 + start,
        end=100 + end,
        text=text[start:end],
        generator_confidence=0.5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_right_mentions_are_told_from_wrong_ones(settings, tmp_path, precision):
    reports = []
    more = {"max_tokens": 60_000, "learning_rate": 3e-3, "precision": precision, "measure_every": 100}
    out = trained(tmp_path / "out", settings, reports.append, **more)
    # Not to nothing: of several mentions of a type, each can be only one of many that are near.
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert [r.f1["toy"] for r in reports if r.f1][-1] > 0.9
    assert [r.more["recall_at_1"]["toy"] for r in reports if r.more][-1] > 0.9
    assert [r.more["separation"]["toy"] for r in reports if r.more][-1] > 0.3
    assert json.loads((out / "selector.json").read_text())["types"] == ["protein"]
    encoder = SpanEncoder.load(settings, out)
    right = [candidate(f"a gene {name} is", 7, 10) for name in ("abc", "cde", "fgh")]
    wrong = [candidate("a gene abc is", 2, 10), candidate("a gene cde is", 7, 13), candidate("no def is", 3, 6)]
    encoded = encoder.encode([*right, *wrong])
    assert (encoded.logits[:3] > 0).all()
    assert (encoded.logits[3:] < 0).all()
    near = encoded.embeddings @ encoded.embeddings.T
    assert near[:3, :3].min() > near[:3, 3:].max()


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not(settings, tmp_path):
    class Killed(Exception):
        pass

    def kill(report):
        if report.step >= 10:
            raise Killed

    more = {"max_tokens": 2500, "batch_tokens": 128}
    whole = trained(tmp_path / "whole", settings, **more)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", settings, kill, save_minutes=1e-9, **more)
    resumed = trained(tmp_path / "cut", settings, **more)
    for file in ("adapter_model.safetensors", "head.safetensors"):
        expected, found = load_file(whole / file), load_file(resumed / file)
        assert expected.keys() == found.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight)


def test_a_selector_can_be_trained_further(settings, tmp_path):
    first = trained(tmp_path / "first", settings, max_tokens=200)
    still = trained(tmp_path / "still", settings, max_tokens=1, learning_rate=1e-12, init=first)
    before, after = (load_file(folder / "head.safetensors") for folder in (first, still))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0)
    with pytest.raises(SelectorError, match="hidden 32, not 16 and 48"):
        trained(tmp_path / "other", settings, max_tokens=1, hidden=48, init=first)


def test_training_can_be_limited_to_texts_with_candidates(settings, tmp_path):
    examples = read(settings.corpora / "toy", "train")
    made = [Row(text_sha256=digest(e.text), start=2, end=10, type="protein", right=False, confidence=0.5, greedy=True)
            for e in examples if e.text == "a gene bcd is"]  # fmt: skip
    write(tmp_path / "c.jsonl", made)
    out = trained(tmp_path / "out", settings, candidates=[tmp_path / "c.jsonl"], only_candidates=True, max_tokens=200)
    data = json.loads((out / "training.json").read_text())["data"]
    assert 0 < data["toy"]["segments"] < len(examples)
    assert data["toy"]["segments"] == sum(e.text == "a gene bcd is" for e in examples)
    assert len(data["candidates"]["sha256"]) == 1


def test_the_revision_changes_with_the_encoders_output(settings, tmp_path):
    out = trained(tmp_path / "out", settings, max_tokens=200)
    before = encoder_revision(settings, out)
    (out / "training.json").write_text("{}")
    assert encoder_revision(settings, out) == before
    made = json.loads((out / "selector.json").read_text())
    (out / "selector.json").write_text(json.dumps(made | {"types": ["dna"]}))
    assert encoder_revision(settings, out) != before


def test_the_geometry_only_compares_spans_of_one_type():
    # Two mentions of a type side by side, a wrong span of it far off; a mention of another type right beside them.
    embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    types, right = torch.tensor([0, 0, 0, 1]), torch.tensor([True, True, False, True])
    told = geometry(embeddings, types, right)
    assert told == {
        "recall_at_1": 1.0,
        "recall_at_10": 1.0,
        "separation": pytest.approx(0.8 - (0.0 + 0.6) / 2),
    }
    crossed = geometry(embeddings, types, torch.tensor([True, False, True, True]))
    assert (crossed["recall_at_1"], crossed["recall_at_10"]) == (0.0, 1.0)
    assert geometry(embeddings, types, torch.zeros(4, dtype=torch.bool)) == dict.fromkeys(told, 0.0)
