import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.extractor import Extractor
from shared.calibration import Calibration
from shared.copying import CopyTokens
from shared.messages import Document
from shared.packing import use_packed_attention
from shared.settings import Settings
from tests.tiny import make_tiny_model
from training.corpora import Example, Mention
from training.generator import GeneratorConfig, MasterAdamW, decision_loss, train
from training.tasks import items, pack

GENES = ["abc", "bcd", "cde", "def", "efg", "fgh"]


def corpus(folder):
    """Every `gene X` names a protein X: learnable by a tiny model in seconds."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(60):
        name = GENES[i % len(GENES)]
        text = f"a gene {name} is" if i % 3 else f"no {name} is"
        at = text.index(name)
        found = [{"start": at, "end": at + 3, "type": "protein", "text": name}] if i % 3 else []
        rows.append({"id": str(i), "text": text, "lang": "en", "entities": found})
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def settings(tmp_path):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base")
    return Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")


def config(out, **changes):
    given = {"minutes": 10.0, "max_tokens": 6000, "batch_tokens": 256, "rank": 8, "alpha": 16, "warmup_steps": 2}
    return GeneratorConfig(out=out, corpora={"toy": 1.0}, dev_batches=1, dev_every=10, **{**given, **changes})


@torch.no_grad()
def test_the_loss_is_that_of_the_plain_model(tmp_path):
    """Packed, shared prefix, few logits: the same number as whole sequences and the full vocabulary give."""
    folder = make_tiny_model(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    packed = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    tokens = CopyTokens(AutoTokenizer.from_pretrained(folder))
    example = Example("1", "The CD28 gene", "en", (Mention(4, 8, "protein"),), ("protein", "rna"))
    (item,) = items([example], tokens, 160)
    losses = []
    for line in item.lines:
        logits = plain(torch.tensor([[*item.prefix, *line.ids]])).logits[0]
        for before, first, right in line.decisions:
            losses.append(-torch.log_softmax(logits[len(item.prefix) + before, list(first)], -1)[right])
    loss = decision_loss(packed, pack([item, item], 2 * len(item) + 7))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_training_lowers_the_loss_and_its_adapter_is_served(settings, tmp_path):
    reports = []
    out = train(config(tmp_path / "out", max_tokens=40_000, learning_rate=5e-3), settings, reports.append)
    assert reports[-1].dev["toy"] < reports[0].loss / 2
    assert json.loads((out / "training.json").read_text())["config"]["rank"] == 8
    served = Extractor.load(settings.model_copy(update={"adapter": str(out)}), calibration=Calibration.default())
    (found,) = served.extract([Document(id="x", text="a gene cde is", types=("protein",))])
    assert [(e.start, e.end) for e in found.entities] == [(7, 10)]


def test_a_run_that_was_cut_off_goes_on(settings, tmp_path):
    class Killed(Exception):
        pass

    def kill(report):
        if report.step >= 20:
            raise Killed

    cut = config(tmp_path / "out", save_minutes=0.0, max_tokens=10**9)
    with pytest.raises(Killed):
        train(cut, settings, kill)
    assert (tmp_path / "out" / "checkpoint.pt").is_file()
    reports = []
    resumed = config(tmp_path / "out", save_minutes=0.0, resume=True, max_tokens=9000)
    out = train(resumed, settings, reports.append)
    assert reports[0].step > 19
    assert not (out / "checkpoint.pt").exists()
    base = AutoModelForCausalLM.from_pretrained(settings.base_model)
    assert PeftModel.from_pretrained(base, str(out)).peft_config["default"].r == 8


def test_an_adapter_can_be_gone_on_from(settings, tmp_path):
    first = train(config(tmp_path / "first"), settings)
    second = train(config(tmp_path / "second", init=first, max_tokens=300), settings)
    assert (second / "adapter_model.safetensors").is_file()


def test_updates_below_the_precision_of_bfloat16_add_up():
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([parameter], 1e-3, 0.0)
    for _ in range(20):  # each is less than half of what bfloat16 can tell from 1
        parameter.grad = torch.ones_like(parameter)
        optimizer.step(1e-3, 1.0)
    assert (parameter < 0.99).all()
