import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.selection import main, measure_index
from shared.settings import Settings
from tests.support.generators import GENES, corpus
from tests.support.selectors import trained
from tests.support.tiny import make_tiny_model


@pytest.mark.slow
def test_one_command_measures_selection_and_index(tmp_path, monkeypatch):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base")
    settings = Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")
    selector = trained(tmp_path / "selector", settings, max_tokens=300)
    for name, value in {"BASE_MODEL": base, "ADAPTER": "", "SELECTOR": selector}.items():
        monkeypatch.setenv(f"BIOBRACKET_{name}", str(value))
    # Short texts of the type that the selector was trained on: random weights settle long ones bracket by bracket.
    stream = [{"id": str(i), "text": f"a gene {GENES[i]} is", "lang": "en", "types": ["protein"]} for i in range(6)]
    (tmp_path / "corpora" / "stream").mkdir()
    lines = "".join(json.dumps(document) + "\n" for document in stream)
    (tmp_path / "corpora" / "stream" / "notes.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("BIOBRACKET_CORPORA", str(tmp_path / "corpora"))
    app = typer.Typer()
    app.command()(main)
    arguments = ["--documents", "6", "--repetitions", "1", "--exemplars", "2000", "--json"]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["ratio"] > 0
    assert [row["kind"] for row in report["index"]] == ["flat", "ivf", "hnsw"]
    shown = CliRunner().invoke(app, arguments[:-1])
    assert "| 2000 | hnsw |" in shown.stdout


def test_recall_is_against_exact_search():
    draw = np.random.default_rng(0)
    found = draw.standard_normal((50, 16)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    rows = measure_index(found, 3000, ["ivf", "flat"])
    assert {row["kind"]: row["recall_at_10"] == 1.0 for row in rows}["flat"]
    assert all(0 <= row["recall_at_10"] <= 1 and row["exemplars"] == 3000 for row in rows)
