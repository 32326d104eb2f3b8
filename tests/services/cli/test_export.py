from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.messages import Extraction
from tests.support.annotated import Converted
from tests.support.cli import SECRET, call, failed
from tests.support.formats import document

pytestmark = pytest.mark.usefixtures("nothing_runs")

TEXT = "Expression of the IL-2 gene."


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Options that name a file of results, the second of which replaces the first, and one of documents."""
    made = document(TEXT, [(18, 27, "disease"), (18, 22, "cell_line")], "note-1")
    older = made.extraction.model_copy(update={"entities": ()})
    results, texts = tmp_path / "entities.jsonl", tmp_path / "documents.jsonl"
    results.write_text(f"{older.model_dump_json()}\n{made.extraction.model_dump_json()}\n")
    texts.write_text(json.dumps({"id": "note-1", "text": TEXT}) + "\n")
    return ["--results", str(results), "--texts", str(texts)]


def test_brat_and_pubtator_open_in_the_converter(given: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "brat"
    assert "wrote 1 documents" in call("export", "--format", "brat", "--out", str(folder), *given).stdout
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    single = tmp_path / "a.pubtator"
    assert call("export", "--format", "pubtator", "--out", str(single), *given).exit_code == 0
    for found in (Converted("brat", files), Converted("pubtator", {"a.txt": single.read_bytes()})):
        assert found.texts() == [TEXT]
        assert found.surfaces() == [("IL-2 gene", "disease"), ("IL-2", "cell_line")]


def test_what_is_lost_is_told(given: list[str], tmp_path: Path) -> None:
    result = call("export", "--format", "conll", "--out", str(tmp_path / "a.conll"), *given)
    assert "lost: 1 × entity nested in another, which CoNLL cannot hold" in result.stderr


def test_a_text_that_is_missing_or_another(given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "a.xml"
    assert "give the documents" in failed(call("export", "--format", "html", "--out", str(out), *given[:2]))
    Path(given[3]).write_text(json.dumps({"id": "note-1", "text": SECRET}))
    assert "is not the one" in failed(call("export", "--format", "html", "--out", str(out), *given))
    assert not list(tmp_path.glob("*a.xml*"))


def test_bad_options_name_the_remedy(given: list[str], tmp_path: Path) -> None:
    assert "--out" in failed(call("export", *given))
    out = ["--out", str(tmp_path / "a")]
    assert "--results" in failed(call("export", *out))
    assert "is always codepoint" in failed(call("export", "--format", "brat", "--offset-unit", "byte", *out, *given))
    Path(given[1]).write_text(f'{{"{SECRET}": 1}}')
    assert "line 1: is no result" in failed(call("export", *out, *given))


def test_a_stored_result(stored: Extraction, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    assert call("export", "病历/1", "--out", str(out)).exit_code == 0
    assert Extraction.model_validate_json(out.read_bytes()) == stored
    assert "no result" in failed(call("export", "nothing", "--out", str(out)))
