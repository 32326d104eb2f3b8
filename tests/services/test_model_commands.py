import json

import pytest
from typer.testing import CliRunner

from services.cli import cli
from tests.tiny import make_tiny_model

run = CliRunner()


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    """A corpus of its own, a tiny base, and the environment that names both."""
    folder = tmp_path / "corpora" / "toy"
    folder.mkdir(parents=True)
    rows = [
        {
            "id": str(i),
            "text": "the gene abc binds",
            "lang": "en",
            "entities": [{"start": 9, "end": 12, "type": "Protein", "text": "abc"}],
        }
        for i in range(12)
    ]
    for split in ("train", "dev", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setenv("BIOBRACKET_CORPORA", str(tmp_path / "corpora"))
    monkeypatch.setenv("BIOBRACKET_BASE_MODEL", str(make_tiny_model(tmp_path / "base")))
    monkeypatch.setenv("BIOBRACKET_ADAPTER", str(tmp_path / "adapter"))
    return tmp_path


@pytest.mark.slow
def test_train_calibrate_evaluate(corpora):
    train = ["train", "generator", "--out", str(corpora / "adapter"), "--corpora", "toy"]
    trained = run.invoke(cli, [*train, "--max-tokens", "2000", "--batch-tokens", "256", "--rank", "4"])
    assert trained.exit_code == 0, trained.output
    assert (corpora / "adapter" / "adapter_config.json").is_file()

    calibrated = run.invoke(cli, ["train", "calibration", "--corpora", "toy"])
    assert calibrated.exit_code == 0, calibrated.output
    assert (corpora / "adapter" / "calibration.json").is_file()

    predictions = corpora / "predictions.jsonl"
    arguments = ["evaluate", "--corpus", "toy", "--split", "test"]
    scored = run.invoke(cli, [*arguments, "--json", "--predictions", str(predictions)])
    assert scored.exit_code == 0, scored.output
    result = json.loads(scored.stdout.strip().splitlines()[-1])
    assert 0.0 <= result["micro"]["f1"] <= 1.0
    assert result["micro"]["gold"] == 12
    assert result["documents"] == len(predictions.read_text(encoding="utf-8").splitlines()) == 12

    table = run.invoke(cli, [*arguments, "--limit", "2"])
    assert table.exit_code == 0, table.output
    assert "nested alone" in table.output
    assert "micro" in table.output


def test_a_missing_adapter_names_the_setting(corpora):
    result = run.invoke(cli, ["evaluate", "--corpus", "toy"])
    assert result.exit_code == 1
    assert "BIOBRACKET_ADAPTER" in result.output


def test_a_missing_corpus_names_the_remedy(corpora):
    result = run.invoke(cli, ["evaluate", "--corpus", "none"])
    assert result.exit_code == 1
    assert "BIOBRACKET_CORPORA" in result.output


@pytest.mark.parametrize("shares", ["toy=x", "toy=0", "=1"])
def test_bad_shares_are_refused(corpora, shares):
    result = run.invoke(cli, ["train", "generator", "--out", str(corpora / "adapter"), "--corpora", shares])
    assert result.exit_code == 1
    assert "corpora" in result.output
