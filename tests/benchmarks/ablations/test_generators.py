import json

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from benchmarks.ablations.generators import JOINT, VARIANTS, LabelledEngine, main
from services.generation.engine import TagRequest
from shared.messages import Segment
from shared.text.grammar import CopyTokens
from shared.text.pieces import split
from shared.text.tagging import decode
from tests.support.tiny import make_tiny_model
from training.ablations.labelled import Walk, header

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


@torch.inference_mode()
def token_by_token(model, tokenizer, request):
    """What the engine has to say: the likeliest of the admissible tokens, one after the other."""
    tokens, pieces = CopyTokens(tokenizer), split(request.segment.text)
    ids = [*tokens.prefix(pieces), *header(tokens, request.types, "en")]
    walk = Walk(tokens, pieces, request.types, "en")
    while not walk.done:
        logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(max(walk.options(), key=lambda token: float(logits[token])))
        walk.feed(ids[-1])
    return {(pieces.cores[start], pieces.ends[end - 1], type_) for start, end, type_ in walk.spans}


def test_labelled_lines_are_the_likeliest_whatever_their_neighbours(tmp_path):
    texts = ["T cells | [x]", "CD28", "a longer text of several words, 12"]
    requests = [
        TagRequest(
            Segment(document_id="1", index=i, start=0, end=len(text), text=text, lang="en"), ("protein", "cell_type")
        )
        for i, text in enumerate(texts)
    ]
    found = 0
    for seed in range(6):
        folder = make_tiny_model(tmp_path / str(seed), seed=seed)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        for request, lines in zip(requests, LabelledEngine(model, tokenizer).tag(requests), strict=True):
            assert [line.type for line in lines] == list(request.types)
            said = {(*span, line.type) for line in lines if line.tagged for span in decode(line.tagged)[1]}
            assert said == token_by_token(model, tokenizer, request)
            assert all(decode(line.tagged)[0] == request.segment.text for line in lines if line.tagged)
            found += len(said)
    assert found > 0


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
