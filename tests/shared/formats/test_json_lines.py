from __future__ import annotations

import json

import pytest
from hypothesis import given

from shared.errors import FormatError
from shared.formats import json_lines
from shared.formats.common import Writing, annotated
from shared.messages import Extraction
from tests.support.formats import document, documents, written


@given(documents())
def test_code_points_are_the_extraction_as_it_is(made):
    assert Extraction.model_validate_json(written(json_lines.write, [made])) == made.extraction


@given(documents())
def test_other_units_slice_the_text_of_other_languages(made):
    for unit, encoding, width in (("utf16", "utf-16-le", 2), ("byte", "utf-8", 1)):
        plain = json.loads(written(json_lines.write, [made], Writing(unit=unit)))
        assert plain["offset_unit"] == unit
        raw = made.text.encode(encoding)
        for entity in plain["entities"]:
            assert raw[entity["start"] * width : entity["end"] * width].decode(encoding) == entity["text"]


def test_other_units_need_the_text():
    made = annotated(document("asthma", []).extraction, None)
    assert json_lines.in_unit(made, "codepoint")["document_id"] == "note-1"
    with pytest.raises(FormatError, match="is not known"):
        json_lines.in_unit(made, "utf16")
