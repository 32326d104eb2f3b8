import json
import pickle

import pytest
import torch

from services.extractor import DevScores, Extractor
from shared.messages import Document, check_offsets
from shared.model.base_model import load_base
from shared.model.packing import use_packed_attention
from shared.selection.calibration import Calibration
from shared.settings import Settings
from tests.support.tiny import make_tiny_model

NOTES = [
    Document(id="1", text="Activation of the CD28 [1] surface receptor.\r\n\r\nIt binds IL-2 \\ and more."),
    Document(id="2", text="患者因右肺下叶腺癌😀入院，行ＣＴ检查。"),
    Document(id="3", text=""),
    Document(id="4", text="chemical free", types=("protein", "disease")),
]


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    base = make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=1)
    return Extractor.load(
        Settings(base_model=str(base), adapter="", selector="", cache=base / "cache"), Calibration.default()
    )


def test_every_entity_is_where_it_says(extractor):
    done = []
    extractions = extractor.extract(NOTES, done.append)
    assert [e.document_id for e in extractions] == ["1", "2", "3", "4"]
    assert sorted(e.document_id for e in done) == ["1", "2", "3", "4"]
    for document, extraction in zip(NOTES, extractions, strict=True):
        assert extraction.counts.refused == 0
        assert all(check_offsets(document.text, entity) for entity in extraction.entities)
    assert [e.lang for e in extractions[:2]] == ["en", "zh"]
    assert extractions[3].types == ("protein", "disease")
    assert extractions[2].entities == ()


def test_candidates_are_what_is_selected_from(extractor):
    extractions, candidates = extractor.extract(NOTES), extractor.candidates(NOTES)
    for document, extraction, of in zip(NOTES, extractions, candidates, strict=True):
        spans = [(c.start, c.end, c.type) for c in of]
        assert spans == sorted(set(spans))
        assert set(spans) >= {(e.start, e.end, e.type) for e in extraction.entities}
        assert {c.segment.document_id for c in of} <= {document.id}
    assert sum(map(len, candidates)) > sum(len(e.entities) for e in extractions)


def test_the_same_text_gives_the_same_entities(extractor):
    first = extractor.extract(NOTES)
    again = extractor.extract(NOTES[::-1])[::-1]
    for a, b in zip(first, again, strict=True):
        assert [(e.id, pytest.approx(e.confidence, abs=1e-3)) for e in a.entities] == [
            (e.id, e.confidence) for e in b.entities
        ]


def test_dev_scores_are_those_of_the_model(tmp_path, monkeypatch):
    """What the model itself finds, taken as gold, scores one; it survives a way to another process."""
    monkeypatch.setenv("BIOBRACKET_GENERATION_DTYPE", "float32")
    base = make_tiny_model(tmp_path / "base", seed=1)
    settings = Settings(base_model=str(base), adapter="", cache=tmp_path, corpora=tmp_path)
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
