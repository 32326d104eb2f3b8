from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli import cli
from services.cli.schemas import as_json, schemas
from services.ingest.admission import admit, admit_feedback
from shared.backends.records import Record, dead_letter_headers
from shared.errors import DocumentError
from shared.messages import Entity, Extraction, SourcePosition

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "schemas"
SCHEMAS = schemas()


def valid(name: str, value: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMAS[name]).is_valid(value)


def test_the_files_are_those_of_the_code(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["schemas", str(tmp_path)])
    assert result.exit_code == 0
    written = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    assert written == {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    assert written == {f"{name}.json": as_json(schema) for name, schema in SCHEMAS.items()}
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@given(
    value=st.fixed_dictionaries(
        {"id": st.sampled_from(["d", "", 7]), "text": st.sampled_from(["CD28", "", None])},
        optional={
            "v": st.sampled_from([1, 2]),
            "lang": st.sampled_from(["en", "zh", "de", None]),
            "types": st.sampled_from([["protein"], ["protein"] * 65, "protein", None]),
            "metadata": st.sampled_from([{"ward": 7}, [], None]),
            "of a later version": json_values,
        },
    )
)
def test_what_the_schema_takes_is_taken(value: dict[str, Any]) -> None:
    try:
        admit(json.dumps(value).encode())
        taken = True
    except DocumentError:
        taken = False
    if valid("document", value):
        assert taken
    # The code is kinder in one case: metadata of null counts as absent.
    if taken and value.get("metadata", {}) is not None:
        assert valid("document", value)


def test_results_are_valid() -> None:
    entity = Entity(
        id="protein:0-4", start=0, end=4, text="CD28", type="protein", confidence=0.5, generator_confidence=0.5
    )
    extraction = Extraction(
        document_id="d",
        text_sha256="00",
        lang="en",
        types=("protein",),
        entities=(entity,),
        metadata={"ward": 7},
        source=SourcePosition(topic="t", partition=0, offset=1, timestamp_ms=2),
        model_revision="r",
    )
    told = json.loads(extraction.model_dump_json())
    assert valid("extraction", told)
    assert valid("extraction", told | {"of a later version": 1})
    assert not valid("extraction", told | {"lang": "de"})


@pytest.mark.parametrize("later", [{}, {"of a later version": 1}])
def test_feedback_is_valid(later: dict[str, Any]) -> None:
    given = {"text": "CD28 binds", "start": 0, "end": 4, "type": "protein", "accepted": True, **later}
    assert valid("feedback", given)
    assert admit_feedback(json.dumps(given).encode(), 1.0)[1] == len(later)


def test_headers_of_dead_letters_are_valid() -> None:
    record = Record("t", 1, 2, None, None, 3, topic_id="ab" * 16, span=4)
    headers = dead_letter_headers(record, "invalid", "text")
    assert ("biobracket.span", b"4") in headers
    assert valid("dead-letter-headers", {name: value.decode() for name, value in headers})
    assert not valid("dead-letter-headers", {"biobracket.reason": "invalid"})
