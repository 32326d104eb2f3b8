import json

import pytest
from typer.testing import CliRunner

from services.cli import cli
from shared.settings import Settings
from training.data.corpora import read

run = CliRunner()


@pytest.mark.slow
def test_train_calibrate_evaluate(workplace):
    train = ["train", "generator", "--no-ray", "--out", str(workplace / "adapter"), "--set", "corpora={toy: {}}"]
    changes = ["max_tokens=2000", "batch_tokens=256", "rank=4", "compile=false", "measure_every=3"]
    trained = run.invoke(cli, train + [part for change in changes for part in ("--set", change)])
    assert trained.exit_code == 0, trained.output
    assert (workplace / "adapter" / "adapter_config.json").is_file()

    lines = ["--lines", str(workplace / "lines")]
    calibrated = run.invoke(cli, ["train", "calibration", "--corpora", "toy=20", *lines])
    assert calibrated.exit_code == 0, calibrated.output
    assert (workplace / "adapter" / "calibration.json").is_file()
    file = workplace / "candidates.jsonl"
    asked = run.invoke(cli, ["candidates", "--corpus", "toy", "--limit", "5", "--out", str(file)])
    assert asked.exit_code == 0, asked.output
    assert "of 5 texts" in asked.stdout
    assert "abc" not in file.read_text()

    arguments = ["evaluate", "--corpus", "toy", "--split", "test", "--json"]
    scored = run.invoke(cli, [*arguments, "--report", str(workplace / "report")])
    assert scored.exit_code == 0, scored.output
    result = json.loads(scored.stdout)
    assert 0.0 <= result["micro"]["f1"] <= 1.0
    assert result["micro"]["gold"] == 12
    assert result["seconds"] > 0
    predictions = workplace / "report" / "predictions.jsonl"
    assert result["documents"] == len(predictions.read_text(encoding="utf-8").splitlines()) == 12

    again = run.invoke(cli, [*arguments, "--from", str(predictions)])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == {**result, "seconds": None}

    for _ in range(2):  # the second takes what the first has kept, and says nothing of its time
        kept = run.invoke(cli, [*arguments, *lines])
        assert kept.exit_code == 0, kept.output
    assert json.loads(kept.stdout) == {**result, "seconds": None}
    (workplace / "notes").write_text("something else")
    assert "name a file" in run.invoke(cli, [*arguments, "--lines", str(workplace / "notes")]).output


def test_what_the_model_finds_is_added_to_the_gold_mentions(workplace, monkeypatch):
    monkeypatch.setenv("BIOBRACKET_ADAPTER", "")
    out, toy = workplace / "more", Settings().corpora / "toy"
    asked = ["self-label", "--corpus", "toy", "--limit", "5", "--out", str(out), "--types"]
    for wrong, said in (("weather", "types"), ("protein", "is annotated with protein"), ("", "types")):
        refused = run.invoke(cli, [*asked, wrong])
        assert (refused.exit_code, said in refused.output) == (1, True)
    done = run.invoke(cli, [*asked, "disease,dna"])
    assert done.exit_code == 0, done.output
    gold = read(toy, "train")[:5]
    both = [json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    added = 0
    for example, row in zip(gold, both, strict=True):
        assert row["text"] == example.text
        mentions = {(e["start"], e["end"], e["type"]) for e in row["entities"]}
        assert all(e["text"] == example.text[e["start"] : e["end"]] for e in row["entities"])
        assert {m for m in mentions if m[2] == "protein"} == {(m.start, m.end, m.type) for m in example.mentions}
        assert {type_ for *_, type_ in mentions} <= {"protein", "disease", "dna"}
        added += sum(type_ != "protein" for *_, type_ in mentions)
    assert done.stdout.startswith(f"{added} mentions added to 5 texts")
    itself = run.invoke(cli, [*asked[:-2], str(toy), "--types", "dna"])
    assert "is the corpus itself" in itself.output


@pytest.mark.parametrize(
    ("change", "field"), [("corpora={toy: {share: 0}}", "corpora.toy.share"), ("minuets=3", "minuets")]
)
def test_bad_configurations_are_refused(workplace, change, field):
    result = run.invoke(cli, ["train", "generator", "--out", str(workplace / "adapter"), "--set", change])
    assert result.exit_code == 1
    assert field in result.output
