import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.ablations.generators import JOINT, VARIANTS, main
from tests.support.tiny import make_tiny_model

TEXTS = {
    "genia": ("en", [("a gene abc is", "protein", 7, 10), ("the cell def is", "cell_line", 9, 12)]),
    "bc5cdr": ("en", [("drug xyz helps", "Chemical", 5, 8), ("pain of head", "Disease", 0, 4)]),
    "cmeee_v2": ("zh", [("他有高血压", "dis", 2, 5), ("查血压", "ite", 1, 3)]),
}


@pytest.fixture
def corpora(tmp_path):
    for name, (lang, texts) in TEXTS.items():
        folder = tmp_path / "corpora" / name
        folder.mkdir(parents=True)
        rows = [
            {"id": str(i), "text": t, "lang": lang, "entities": [{"start": s, "end": e, "type": y, "text": t[s:e]}]}
            for i, (t, y, s, e) in enumerate(texts * 6)
        ]
        for part in ("train", "dev", "test"):
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return tmp_path / "corpora"


@pytest.mark.slow
def test_the_ablation_trains_scores_and_goes_on(corpora, tmp_path, monkeypatch):
    monkeypatch.setenv("BIOBRACKET_CORPORA", str(corpora))
    monkeypatch.setenv("BIOBRACKET_BASE_MODEL", str(make_tiny_model(tmp_path / "base")))
    app = typer.Typer()
    app.command()(main)
    options = ["--out", str(tmp_path / "out"), "--tokens", "1500", "--segments", "5"]
    options += [f"--set={field}" for field in ("batch_tokens=256", "compile=false", "dev_batches=1", "rank=4")]
    first = CliRunner().invoke(app, options, catch_exceptions=False)
    report = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert list(report["variants"]) == [v.name for v in VARIANTS]
    assert report["texts"] == {"genia": 5, "cmeee_v2": 5, "bc5cdr": 5}
    for name, row in report["variants"].items():
        for cell in row.values():
            assert 0 <= cell["f1"] <= 1
            assert (cell["difference"] is None) == (name == JOINT)
    assert all(f"| {v.name} |" in first.stdout for v in VARIANTS)
    # Everything is there: a second call only tells it again.
    written = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.safetensors")}
    second = CliRunner().invoke(app, options, catch_exceptions=False)
    assert second.stdout == first.stdout
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.safetensors")} == written
