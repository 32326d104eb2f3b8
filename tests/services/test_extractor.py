import pytest

from services.extractor import Extractor
from shared.messages import Document, check_offsets
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
