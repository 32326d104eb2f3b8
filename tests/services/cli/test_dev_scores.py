import json
import pickle

import torch
from peft import LoraConfig, get_peft_model

from services.cli.dev_scores import DevScores
from services.extractor import Extractor
from shared.messages import Document
from shared.model.attention import use_packed_attention
from shared.model.base_model import load_base
from shared.model.digests import write_sums
from shared.model.scheme import write_scheme
from shared.selection.calibration import Calibration
from shared.settings import Settings
from tests.support.tiny import make_tiny_model


def test_dev_scores_are_those_of_the_model(tmp_path, monkeypatch):
    """What the model itself finds, taken as gold, scores one; it survives a way to another process."""
    monkeypatch.setenv("BIOBRACKET_GENERATION_DTYPE", "float32")
    base = make_tiny_model(tmp_path / "base", seed=8)
    settings = Settings(base_model=str(base), adapter=str(tmp_path / "adapter"), cache=tmp_path, corpora=tmp_path)
    # An adapter that changes nothing yet says how the base is asked.
    untrained = get_peft_model(load_base(settings, torch.float32), LoraConfig(target_modules=["q_proj"]))
    untrained.save_pretrained(tmp_path / "adapter")
    write_scheme(tmp_path / "adapter")
    write_sums(tmp_path / "adapter")
    texts = [f"CD28 binds IL-{i}." for i in range(4)]
    (tmp_path / "toy").mkdir()
    documents = [Document(id=str(i), text=text, lang="en", types=("protein",)) for i, text in enumerate(texts)]
    found = Extractor.load(settings, calibration=Calibration.default()).extract(documents)
    rows = [
        {
            "id": document.id,
            "text": document.text,
            "lang": "en",
            "entities": [{"start": e.start, "end": e.end, "type": e.type, "text": e.text} for e in extraction.entities],
        }
        for document, extraction in zip(documents, found, strict=True)
    ]
    assert any(row["entities"] for row in rows)
    (tmp_path / "toy" / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measure = pickle.loads(pickle.dumps(DevScores(settings, {"toy": {"protein": "protein"}}, 4)))
    model = use_packed_attention(load_base(settings, torch.float32))
    assert measure(model) == {"toy": 1.0}
