import json

import pytest
from typer.testing import CliRunner

from services.cli import cli
from training.data.corpora import read

run = CliRunner()

ANN = "T1\tDisease 4 12\tmyopathy\nT2\tDRUG 22 29\tstatins\nT3\tBody 4 6;10 12\tmy hy\n"


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("The myopathy came with statins.", encoding="utf-8")
    (folder / "a.ann").write_text(ANN.replace("22 29", "23 30"), encoding="utf-8")
    (folder / "b.txt").write_text("肌痛一周。", encoding="utf-8")
    (folder / "b.ann").write_text("T1\tfinding 0 2\t肌痛\n", encoding="utf-8")
    return folder


def convert(corpus, *options, format_="brat"):
    to = corpus.parent / "out" / "test.jsonl"
    return run.invoke(cli, ["convert", str(corpus), "--format", format_, "--out", str(to), *options]), to


def test_convert(corpus):
    result, to = convert(corpus)
    assert result.exit_code == 0, result.output
    assert "2 texts (1 en, 1 zh), 3 mentions" in result.output
    assert "left out: 1 × discontinuous mention" in result.output
    told = [line for line in result.output.splitlines() if line.startswith("next: ")]
    assert told[0].endswith("--split test --map finding=KEY")
    written = [json.loads(line) for line in to.read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row["lang"], len(row["entities"])) for row in written] == [("a", "en", 2), ("b", "zh", 1)]


def test_labels_can_be_chosen_and_mapped(corpus):
    chosen = ["--types", "Disease, finding,Gene", "--map", "finding=symptom"]
    result, to = convert(corpus, *chosen, "--lang", "en", "--discontinuous", "cover")
    assert result.exit_code == 0, result.output
    assert "next:" not in result.output
    assert "no label Gene" in result.output
    assert [m.type for example in read(to.parent, "test") for m in example.mentions] == ["disease", "symptom"]


def test_what_is_bad_is_named_or_left_out(corpus):
    (corpus / "b.ann").write_text("T1\tfinding 1 3\t肌痛\n", encoding="utf-8")
    result, to = convert(corpus)
    assert result.exit_code == 1
    assert "b.ann, line 1: offsets" in result.output
    assert "--skip-bad" in result.output
    assert "肌痛" not in result.output
    assert not to.exists()
    result, to = convert(corpus, "--skip-bad")
    assert result.exit_code == 0, result.output
    assert "left out: 1 × offsets that do not give the mention's text" in result.output


@pytest.mark.parametrize("mapping", ["Disease", "=disease", "Disease=nothing"])
def test_a_bad_mapping_is_refused(corpus, mapping):
    result, to = convert(corpus, "--map", mapping)
    assert result.exit_code == 1
    assert "map: " in result.output
    assert not to.exists()


def test_options_of_a_format(tmp_path):
    source = tmp_path / "mine.txt"
    source.write_text("-DOCSTART- O O\n\nmyopathy B-Disease O\n\ncame O O\n", encoding="utf-8")
    result, to = convert(source, "--column", "2", "--documents", "docstart", format_="conll")
    assert result.exit_code == 0, result.output
    assert "mention tagged in IOB2" in result.output
    assert json.loads(to.read_text(encoding="utf-8"))["text"] == "myopathy\ncame"


def test_bad_input_names_the_remedy(tmp_path):
    result, _ = convert(tmp_path / "none")
    assert result.exit_code == 1
    assert "INPUT" in result.output
    result, _ = convert(tmp_path, format_="xml")
    assert result.exit_code == 2
    assert "pubtator" in result.output
