import json

import pytest
import torch
from safetensors.torch import load_file

from services.extractor import Extractor
from shared.messages import Document
from shared.model.scheme import scheme_of
from shared.selection.calibration import Calibration
from shared.selection.span_encoder import SpanHead
from shared.settings import Settings
from tests.support.generators import corpus, trained
from tests.support.tiny import make_tiny_model

ADAPTER, HEAD, SELECTOR = "adapter_model.safetensors", "head.safetensors", "selector.json"


@pytest.fixture
def settings(tmp_path):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base")
    return Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")


def labelled(out, settings, report=lambda _: None, **changes):
    return trained(out, settings, report, scheme="labelled", **changes)


def test_line_and_head_are_learned_and_written(settings, tmp_path):
    reports = []
    more = {"max_tokens": 12_000, "learning_rate": 5e-3, "size": 16, "hidden": 32, "judge": 0.3, "wrong": 0.5}
    out = labelled(tmp_path / "out", settings, reports.append, **more)
    assert all(report.dev.keys() == {"toy", "toy head"} for report in reports)
    first, last = reports[0], reports[-1]
    assert last.loss < first.loss / 2
    for name in first.dev:
        assert last.dev[name] < first.dev[name] / 2
    made = json.loads((out / SELECTOR).read_text())
    assert (made["types"], made["size"], made["hidden"], made["reading"]) == (["protein"], 16, 32, "line")
    assert any(tensor.any() for name, tensor in load_file(out / ADAPTER).items() if "lora_B" in name)
    hidden_size = json.loads((tmp_path / "base" / "config.json").read_text())["hidden_size"]
    SpanHead(hidden_size, ["protein"], 32, 16).read(out)
    assert json.loads((out / "training.json").read_text())["data"]["toy"]["texts"] == 60


def test_without_a_judge_there_is_no_head(settings, tmp_path):
    reports = []
    out = labelled(tmp_path / "out", settings, reports.append, max_tokens=1000, judge=0)
    assert (out / ADAPTER).is_file()
    assert not (out / HEAD).exists()
    assert not (out / SELECTOR).exists()
    assert all(report.dev.keys() == {"toy"} for report in reports)


def test_adapter_and_head_can_be_gone_on_from(settings, tmp_path):
    more = {"size": 16, "hidden": 32, "judge": 0.3, "wrong": 0.5}
    first = labelled(tmp_path / "first", settings, max_tokens=1500, **more)
    # With a rate of next to nothing what is written is what was begun with.
    second = labelled(tmp_path / "second", settings, init=str(first), max_tokens=300, learning_rate=1e-12, **more)
    for file in (ADAPTER, HEAD):
        begun, written = load_file(first / file), load_file(second / file)
        assert begun.keys() == written.keys()
        for name, weight in begun.items():
            torch.testing.assert_close(written[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_what_was_learnt_is_served_by_its_scheme(settings, tmp_path):
    out = labelled(tmp_path / "out", settings, max_tokens=40_000, learning_rate=5e-3)
    assert scheme_of(out) == "labelled.v1"
    served = Extractor.load(settings.model_copy(update={"adapter": str(out)}), calibration=Calibration.default())
    (found,) = served.extract([Document(id="x", text="a gene cde is", types=("protein",))])
    assert [(e.start, e.end) for e in found.entities] == [(7, 10)]
