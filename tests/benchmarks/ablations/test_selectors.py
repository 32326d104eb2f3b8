import json
import sqlite3
from contextlib import closing

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.ablations.selectors import GREEDY, OF_NEIGHBOURS, WAYS, at_recall, main
from shared.settings import Settings
from tests.support import generators
from tests.support.generators import corpus
from tests.support.selectors import trained
from tests.support.tiny import make_tiny_model

run = CliRunner()


def kept(file):
    """How many lines there are: the size of the file says nothing while another connection has pages in its log."""
    with closing(sqlite3.connect(file)) as lines:
        return lines.execute("SELECT count(*) FROM lines").fetchone()[0]


@pytest.mark.parametrize(("correct", "left"), [(0, set()), (1, {1}), (2, {1, 2, 3}), (3, {1, 2, 3, 4, 5}), (4, None)])
def test_thresholds_are_raised_until_as_many_are_right(correct, left):
    gold = {(n, n + 1, "protein") for n in (1, 3, 5)}
    above = {1: 3.0, 2: 2.5, 3: 2.0, 4: -1.0, 5: -4.0}  # log-odds over the threshold of the span at each place

    def taken(raised):
        return [{(n, n + 1, "protein") for n, by in above.items() if by >= raised}]

    found = at_recall([gold], taken, correct)
    assert found == (None if left is None else [{(n, n + 1, "protein") for n in left}])


@pytest.mark.slow
def test_one_command_compares_all_ways(tmp_path, monkeypatch):
    toy = corpus(tmp_path / "corpora" / "toy")
    (toy / "test.jsonl").write_text((toy / "dev.jsonl").read_text())
    base = make_tiny_model(tmp_path / "base")
    settings = Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")
    generator = generators.trained(tmp_path / "generator", settings, max_tokens=12_000, learning_rate=5e-3)
    selector = trained(tmp_path / "selector", settings, max_tokens=20_000, learning_rate=3e-3)
    for name, value in {"CORPORA": toy.parent, "BASE_MODEL": base, "ADAPTER": generator, "SELECTOR": selector}.items():
        monkeypatch.setenv(f"BIOBRACKET_{name}", str(value))
    app = typer.Typer()
    app.command()(main)
    question = generators.trained(tmp_path / "question", settings, scheme="question", max_tokens=500)
    lines = tmp_path / "out" / "lines"
    arguments = ["--out", str(tmp_path / "out"), "--lines", str(lines), "--dev", "toy=40", "--test", "toy=30"]
    arguments += ["--beside", f"twin={selector}", "--beside", f"a question={question}"]
    first = run.invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert (tmp_path / "out" / "reliability.png").is_file()
    report = json.loads((tmp_path / "out" / "selectors.json").read_text())
    assert report["ways"].keys() == {
        *WAYS.keys() - OF_NEIGHBOURS,
        "confidence and twin",
        "confidence and a question",
        GREEDY,
    }
    assert report["texts"] == {"toy dev": 40, "toy test": 30}
    for way, row in report["ways"].items():
        assert 0 <= row["toy"]["f1"] <= 1
        assert (row["toy"]["difference"] is None) == (way == "confidence")
    alone = report["ways"]["confidence"]["toy"]
    assert alone["equal_recall"] == [alone["precision"], alone["boundary"]]
    assert 0 < report["ways"]["confidence"]["toy"]["f1"] <= report["ways"]["all"]["toy"]["f1"]
    twin = report["ways"]["confidence and twin"]["toy"]
    assert twin["f1"] == report["ways"]["confidence and head"]["toy"]["f1"]
    before = kept(lines)
    assert run.invoke(app, ["--beside", "nothing"]).exit_code == 2
    again = run.invoke(app, arguments)
    assert again.stdout == first.stdout
    assert kept(lines) == before > 0
