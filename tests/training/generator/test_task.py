import importlib.util
import json
from itertools import count

import pytest
import torch
from safetensors.torch import load_file

from services.extractor import Extractor
from shared.messages import Document
from shared.model.base_model import BaseModelError
from shared.model.scheme import SCHEME_FILE, check_scheme
from shared.selection.calibration import Calibration
from shared.selection.span_encoder import SpanHead
from shared.settings import Settings
from tests.support import distributed
from tests.support.generators import config, corpus, trained
from tests.support.tiny import make_tiny_model
from training.config import CONFIGS, GeneratorConfig
from training.generator.task import train
from training.tuning.checkpoints import FolderCheckpoints, export

ADAPTER, HEAD, SELECTOR = "adapter_model.safetensors", "head.safetensors", "selector.json"


@pytest.fixture
def settings(tmp_path):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base")
    return Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")


def weights(folder):
    return load_file(folder / ADAPTER)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss_and_its_adapter_is_served(settings, tmp_path, precision):
    reports = []
    more = {"max_tokens": 40_000, "learning_rate": 5e-3, "precision": precision}
    out = trained(tmp_path / "out", settings, reports.append, **more)
    assert reports[-1].dev["toy"] < reports[0].loss / 2
    manifest = json.loads((out / "training.json").read_text())
    assert manifest["config"]["rank"] == 8
    assert manifest["data"]["toy"]["texts"] == 60
    check_scheme(out)
    served = Extractor.load(settings.model_copy(update={"adapter": str(out)}), calibration=Calibration.default())
    (found,) = served.extract([Document(id="x", text="a gene cde is", types=("protein",))])
    assert [(e.start, e.end) for e in found.entities] == [(7, 10)]


@pytest.mark.slow
def test_another_architecture_is_trained_and_served(tmp_path):
    """That of the large configuration, without its four bits, which need CUDA."""
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base", architecture="qwen3")
    settings = Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")
    changes = {"tuning": "lora", "minutes": 10, "batch_tokens": 256, "accumulate": 1, "learning_rate": 5e-3}
    changes |= {"max_tokens": 40_000, "gpu": False, "warmup_steps": 2, "precision": "float32", "measure_every": 0}
    large = GeneratorConfig.load(CONFIGS / "qwen3-8b-qlora.yaml", ["corpora={toy: {}}"])
    given = large.model_copy(update=changes)
    train(given, settings, FolderCheckpoints(tmp_path / "checkpoint"))
    out = export(tmp_path / "checkpoint", tmp_path / "out")
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 64
    served = Extractor.load(settings.model_copy(update={"adapter": str(out)}), calibration=Calibration.default())
    (found,) = served.extract([Document(id="x", text="a gene cde is", types=("protein",))])
    assert [(e.start, e.end) for e in found.entities] == [(7, 10)]


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None, reason="needs CUDA, bitsandbytes"
)
@pytest.mark.gpu
def test_four_bits_are_trained(tmp_path):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base", architecture="qwen3")
    settings = Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")
    reports = []
    trained(tmp_path / "out", settings, reports.append, tuning="qlora", max_tokens=40_000, learning_rate=5e-3)
    assert reports[-1].loss < reports[0].loss / 2


def test_four_bits_without_a_gpu_name_the_remedy(settings, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BaseModelError, match="tuning"):
        trained(tmp_path / "out", settings, tuning="qlora")


@pytest.mark.slow
def test_a_whole_model_is_trained_and_served(settings, tmp_path):
    more = {"max_tokens": 40_000, "learning_rate": 5e-3, "tuning": "full"}
    out = trained(tmp_path / "out", settings, **more)
    assert not (out / "adapter_config.json").exists()
    served = Extractor.load(settings.model_copy(update={"base_model": str(out)}), calibration=Calibration.default())
    (found,) = served.extract([Document(id="x", text="a gene cde is", types=("protein",))])
    assert [(e.start, e.end) for e in found.entities] == [(7, 10)]


def test_equal_runs_are_equal(settings, tmp_path):
    first, second = (weights(trained(tmp_path / name, settings, max_tokens=2000)) for name in "ab")
    assert all(torch.equal(first[n], second[n]) for n in first)
    other = weights(trained(tmp_path / "c", settings, max_tokens=2000, seed=14))
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not(settings, tmp_path):
    class Killed(Exception):
        pass

    def kill(report):
        if report.step >= 20:
            raise Killed

    whole = weights(trained(tmp_path / "whole", settings))
    with pytest.raises(Killed):
        trained(tmp_path / "cut", settings, kill, save_minutes=1e-9)
    reports = []
    resumed = trained(tmp_path / "cut", settings, reports.append)
    assert reports[0].step == 20
    for name, weight in weights(resumed).items():
        torch.testing.assert_close(weight, whole[name])


def test_an_adapter_can_be_gone_on_from(settings, tmp_path):
    first = trained(tmp_path / "first", settings, max_tokens=600)
    second = trained(tmp_path / "second", settings, init=str(first), max_tokens=300)
    assert weights(second).keys() == weights(first).keys()


def test_an_adapter_to_go_on_from_has_its_own_rank(settings, tmp_path):
    first = trained(tmp_path / "first", settings, max_tokens=300, rank=4)
    second = trained(tmp_path / "second", settings, init=str(first), max_tokens=300)
    assert json.loads((second / "adapter_config.json").read_text())["r"] == 4
    assert "rank" not in json.loads((second / "training.json").read_text())["config"]


def changes(folder):
    """B A of each adapted layer: the factors' signs mean nothing."""
    found = weights(folder)
    return {n: found[n] @ found[n.replace("lora_B", "lora_A")] for n in found if "lora_B" in n}


def test_the_adapter_of_a_full_tuning_does_not_depend_on_where_the_run_was_cut_off(settings, tmp_path):
    class Killed(Exception):
        pass

    def kill(report):
        if report.step == 6:
            raise Killed

    more = {"tuning": "full", "export_rank": 4, "max_tokens": 1800, "measure_every": 3}
    scores = {3: 0.4, 6: 0.5}  # the best is the second, in the cut-off run found once it goes on

    def measure():
        step = count(3, 3)
        return lambda model: {"toy": scores.get(next(step), 0.1)}

    whole = trained(tmp_path / "whole", settings, measure=measure(), **more)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", settings, kill, measure(), save_minutes=1e-9, **more)
    assert not (tmp_path / "cut" / "checkpoint" / "adapter_model.safetensors").exists()
    late = measure()
    late(None)  # what was measured before the checkpoint
    resumed = trained(tmp_path / "cut", settings, measure=late, **more)
    for name, change in changes(resumed).items():
        torch.testing.assert_close(change, changes(whole)[name], atol=1e-5, rtol=1e-3)
    manifest = json.loads((resumed / "training.json").read_text())
    assert 0 < manifest["export"]["kept"] <= 1
    assert [line["step"] for line in manifest["history"] if line["f1"]][:2] == [3, 6]


@pytest.mark.slow
def test_a_whole_model_of_low_rank_is_served_as_an_adapter(settings, tmp_path):
    more = {"max_tokens": 40_000, "learning_rate": 5e-3, "tuning": "full", "export_rank": 16}
    out = trained(tmp_path / "out", settings, **more)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 16
    assert not (out / "model.safetensors").exists()
    served = Extractor.load(settings.model_copy(update={"adapter": str(out)}), calibration=Calibration.default())
    (found,) = served.extract([Document(id="x", text="a gene cde is", types=("protein",))])
    assert [(e.start, e.end) for e in found.entities] == [(7, 10)]


def test_the_last_weights_are_measured_and_a_run_that_ended_stays_as_it_is(settings, tmp_path):
    scores, reports = iter([0.1, 0.2]), []
    more = {"measure_every": 4, "max_tokens": 1500}
    out = trained(tmp_path / "out", settings, reports.append, lambda model: {"toy": next(scores)}, **more)
    last = reports[-1]
    assert [r.step for r in reports if r.f1] == [4, last.step]
    assert last.step % 4 != 0
    manifest = json.loads((out / "training.json").read_text())
    assert manifest["history"][-1]["f1"] == {"toy": 0.2}
    before = weights(out)
    again = trained(tmp_path / "out", settings, reports.append, lambda model: {"toy": next(scores)}, **more)
    assert reports[-1] is last
    assert json.loads((again / "training.json").read_text())["history"] == manifest["history"]
    assert all(torch.equal(weight, before[name]) for name, weight in weights(again).items())


def test_a_line_at_the_last_step_is_not_told_twice_in_the_history(settings, tmp_path):
    ten, reports = [], []
    trained(tmp_path / "ten", settings, ten.append, max_tokens=3000)
    more = {"measure_every": 1000, "max_tokens": ten[0].tokens}
    out = trained(tmp_path / "out", settings, reports.append, lambda model: {"toy": 0.5}, **more)
    told = [line["step"] for line in json.loads((out / "training.json").read_text())["history"]]
    assert told == [10]
    first, last = reports
    assert (first.step, first.loss, first.dev) == (last.step, last.loss, last.dev)
    assert (first.f1, last.f1) == (None, {"toy": 0.5})


def test_the_best_score_is_kept_and_patience_ends_the_run(settings, tmp_path):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    seen, reports = [], []

    def measure(model):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n})
        return {"toy": next(scores)}

    out = trained(tmp_path / "out", settings, reports.append, measure, measure_every=3, patience=2, max_tokens=10**9)
    assert [r.f1["toy"] for r in reports if r.f1] == [0.1, 0.5, 0.4, 0.3]
    best = {n.removesuffix(".default.weight").removesuffix(".weight"): w for n, w in seen[1].items()}
    for name, weight in weights(out).items():
        torch.testing.assert_close(weight, best[name.removeprefix("base_model.model.").removesuffix(".weight")])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_workers_do_what_one_does_with_twice_the_batches(settings, tmp_path, parallel):
    alone = weights(trained(tmp_path / "alone", settings, accumulate=2, max_tokens=4000))
    given = config(workers=2, parallel=parallel, max_tokens=4000, measure_every=1000)
    torch.multiprocessing.spawn(
        distributed.worker, (2, str(tmp_path / "rendezvous"), given, settings, tmp_path / "both"), nprocs=2
    )
    both = weights(export(tmp_path / "both" / "checkpoint", tmp_path / "both"))
    for name, weight in both.items():
        torch.testing.assert_close(weight, alone[name], atol=2e-5, rtol=1e-3)
    assert json.loads((tmp_path / "both" / "training.json").read_text())["history"][-1]["f1"] == {"toy": 0.5}


def test_line_and_head_are_learned_and_written(settings, tmp_path):
    reports = []
    more = {"max_tokens": 12_000, "learning_rate": 5e-3, "size": 16, "hidden": 32, "judge": 0.3, "wrong": 0.5}
    out = trained(tmp_path / "out", settings, reports.append, **more)
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
    out = trained(tmp_path / "out", settings, reports.append, max_tokens=1000, judge=0)
    assert (out / ADAPTER).is_file()
    assert not (out / HEAD).exists()
    assert not (out / SELECTOR).exists()
    assert all(report.dev.keys() == {"toy"} for report in reports)


def test_adapter_and_head_can_be_gone_on_from(settings, tmp_path):
    more = {"size": 16, "hidden": 32, "judge": 0.3, "wrong": 0.5}
    first = trained(tmp_path / "first", settings, max_tokens=1500, **more)
    # With a rate of next to nothing what is written is what was begun with.
    second = trained(tmp_path / "second", settings, init=str(first), max_tokens=300, learning_rate=1e-12, **more)
    for file in (ADAPTER, HEAD):
        begun, written = load_file(first / file), load_file(second / file)
        assert begun.keys() == written.keys()
        for name, weight in begun.items():
            torch.testing.assert_close(written[name], weight, atol=1e-6, rtol=1e-5)


def test_an_adapter_that_answers_questions_is_not_served(settings, tmp_path):
    out = trained(tmp_path / "out", settings, scheme="question", max_tokens=300)
    assert json.loads((out / "training.json").read_text())["config"]["scheme"] == "question"
    assert not (out / SCHEME_FILE).exists()
