from __future__ import annotations

import pytest

from shared.errors import FormatError
from shared.formats.common import Writing, annotated, flat, for_xml, library, one_line
from tests.support.formats import document


def test_a_text_that_the_result_is_not_of():
    extraction = document("asthma", []).extraction
    with pytest.raises(FormatError, match="is not the one"):
        annotated(extraction, "zq17")


def test_offsets_that_do_not_give_their_text():
    extraction = document("asthma", [(0, 6, "disease")]).extraction
    entity = extraction.entities[0].model_copy(update={"end": 5})
    with pytest.raises(FormatError, match=r"entities: .*extract the document again"):
        annotated(extraction.model_copy(update={"entities": (entity,)}), "asthma")


def test_a_text_that_is_not_known():
    with pytest.raises(FormatError, match="w3c or parquet"):
        annotated(document("asthma", []).extraction, None).known_text()


def test_what_is_flattened_is_counted():
    writing = Writing()
    made = document("abcdefgh", [(0, 4, "disease"), (1, 2, "disease"), (2, 6, "disease"), (4, 8, "disease")])
    assert [e.id for e in flat(made.entities, "X", writing)] == ["disease:0-4", "disease:4-8"]
    assert writing.lost == {
        "entity nested in another, which X cannot hold": 1,
        "entity that crosses another, which X cannot hold": 1,
    }


def test_characters_are_replaced_one_by_one_and_counted():
    writing = Writing()
    assert one_line("a\r\nb", "text", writing) == "a  b"
    assert for_xml("a\x00\uffffb\t", writing) == "a\ufffd\ufffdb\t"
    assert writing.changed.total() == 4


def test_a_library_that_is_not_installed():
    with pytest.raises(FormatError, match=r"format: x needs nothing-such.*biobracket\[export\]"):
        library("nothing_such", "nothing-such", "x")
