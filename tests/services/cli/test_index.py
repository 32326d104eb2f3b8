"""Train a selector, give it exemplars, calibrate it, score with it and without: the whole way by the command line."""

import json

import pytest
from typer.testing import CliRunner

from services.cli import cli
from tests.support.generators import corpus

run = CliRunner()


def call(*arguments, code=0):
    result = run.invoke(cli, list(arguments))
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


@pytest.mark.slow
def test_train_index_calibrate_evaluate(workplace, monkeypatch):
    corpus(workplace / "corpora" / "genes")
    test = workplace / "corpora" / "genes" / "test.jsonl"
    test.write_text((workplace / "corpora" / "genes" / "dev.jsonl").read_text())
    changes = ["corpora={genes: {}}", "max_tokens=4000", "batch_tokens=256", "rank=4", "compile=false", "size=16"]
    changes += ["hidden=32", "measure_every=0", "precision=float32"]
    settings = [part for change in changes for part in ("--set", change)]
    selector = workplace / "selector"
    assert "BIOBRACKET_SELECTOR" in call("train", "selector", "--no-ray", "--out", str(selector), *settings)
    assert (selector / "curves.png").is_file()

    monkeypatch.setenv("BIOBRACKET_ADAPTER", "")
    assert "none is set" in call("index", "info", code=1)
    assert "none is set" in call("train", "gazetteer", "--corpora", "genes", code=1)
    monkeypatch.setenv("BIOBRACKET_SELECTOR", str(selector))
    assert "biobracket index build" in call("index", "info", code=1)
    assert "not one of flat" in call("index", "build", "--kind", "tree", code=1)
    assert "exemplars" in call("index", "build", "--corpora", "genes=20")
    assert "protein" in call("index", "info")
    assert "all intact" in call("index", "check")
    assert "1 exemplars removed" in call("index", "remove", "genes:1:7-10:protein", "no such one")
    assert "exemplars added" in call("index", "add", "--corpora", "genes=30")

    assert "different words" in call("train", "gazetteer", "--corpora", "genes")
    assert (selector / "gazetteer.safetensors").is_file()
    assert "biobracket train calibration" in call("evaluate", "--corpus", "genes", "--selector", "on", code=1)
    assert "expected calibration error" in call("train", "calibration", "--corpora", "genes")
    assert len(list(selector.glob("calibration-*.json"))) == 1
    scored = {}
    for which in ("on", "off"):
        report = str(workplace / which)
        scored[which] = json.loads(
            call("evaluate", "--corpus", "genes", "--selector", which, "--json", "--report", report)
        )
    assert scored["on"]["model_revision"] != scored["off"]["model_revision"]
    against = str(workplace / "off" / "predictions.jsonl")
    compared = ["--from", str(workplace / "on" / "predictions.jsonl"), "--against", against]
    assert "micro" in call("evaluate", "--corpus", "genes", *compared)
    assert "neither `on` nor `off`" in call("evaluate", "--corpus", "genes", "--selector", "maybe", code=1)

    vectors = selector / "index" / "protein.faiss"
    vectors.write_bytes(vectors.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    assert "protein.faiss" in call("index", "check", code=1)
