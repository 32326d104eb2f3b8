"""What tests of commands start from."""

import json

import pytest


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A corpus of its own, a tiny base, and the environment that names both."""
    from tests.support.tiny import make_tiny_model  # here: it loads PyTorch, which most tests can do without

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
