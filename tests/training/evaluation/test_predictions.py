import json

import pytest

from shared.messages import Document, Entity, Extraction, entity_id
from training.evaluation.predictions import PredictionsError, read, write

TEXT = "secret abc"


def document(text=TEXT, types=("protein",)):
    return Document(id="any", text=text, lang="en", types=types)


def extraction(document, *spans):
    entities = tuple(
        Entity(
            id=entity_id(type_, start, end),
            start=start,
            end=end,
            text=document.text[start:end],
            type=type_,
            confidence=0.5,
            generator_confidence=0.5,
        )
        for start, end, type_ in spans
    )
    return Extraction(
        document_id="0",
        text_sha256=document.sha256,
        lang="en",
        types=document.types,
        entities=entities,
        model_revision="r",
    )


def test_written_predictions_can_be_read(tmp_path):
    documents = [document(), document("患者\u2028\x85 abc"), document("")]
    extractions = [extraction(documents[0], (7, 10, "protein")), *map(extraction, documents[1:])]
    write(tmp_path / "p", extractions)
    assert read(tmp_path / "p", documents) == extractions


def test_the_order_of_types_is_no_difference(tmp_path):
    write(tmp_path / "p", [extraction(document(types=("dna", "protein")))])
    assert read(tmp_path / "p", [document(types=("protein", "dna"))])


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([], "1 lines for 0 texts"),
        ([document(), document()], "1 lines for 2 texts"),
        ([document("secret abd")], "line 1: made from another text"),
        ([document(types=("protein", "dna"))], "line 1: made for other types"),
    ],
)
def test_other_documents_are_refused_with_the_remedy(tmp_path, documents, says):
    write(tmp_path / "p", [extraction(document(), (7, 10, "protein"))])
    with pytest.raises(PredictionsError, match=rf"{says}.*--corpus, --split, --limit and --map") as error:
        read(tmp_path / "p", documents)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("change", [{"v": 2}, {"entities": "secret"}, {"text_sha256": None}, None])
def test_invalid_lines_are_refused_without_quoting_them(tmp_path, change):
    row = extraction(document()).model_dump(mode="json")
    (tmp_path / "p").write_text("secret" if change is None else json.dumps(row | change), encoding="utf-8")
    with pytest.raises(PredictionsError, match=r"line 1: not an extraction .*--report") as error:
        read(tmp_path / "p", [document()])
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_offsets_that_do_not_give_the_text_are_refused(tmp_path):
    wrong = extraction(document("Secret abc"), (0, 6, "protein")).model_copy(update={"text_sha256": document().sha256})
    write(tmp_path / "p", [wrong])
    with pytest.raises(PredictionsError, match="line 1: offsets") as error:
        read(tmp_path / "p", [document()])
    assert "ecret" not in str(error.value)


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(PredictionsError, match=r"cannot read .*No such file.*--report"):
        read(tmp_path / "none", [document()])
