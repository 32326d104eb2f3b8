from __future__ import annotations

import io
import json

import bioc as library
import pytest
from bioc import biocjson
from hypothesis import given
from hypothesis import strategies as st

from shared.formats import bioc
from shared.formats.common import Writing
from shared.formats.offsets import OffsetUnit
from tests.support.annotated import ALPHABET, Converted
from tests.support.formats import document, documents, spans_of, written

UNITS: list[OffsetUnit] = ["codepoint", "utf16", "byte"]


@given(documents(ALPHABET + "\r\n\t\x00\x0b\uffff<&"), st.sampled_from(UNITS), st.sampled_from(["xml", "json"]))
def test_round_trip(made, unit, kind):
    # An anchor behind the widest characters, by whose place the reader tells the unit.
    made = document(made.text + " Z", [*spans_of(made), (len(made.text) + 1, len(made.text) + 2, "disease")])
    writing = Writing(unit=unit)
    write = {"xml": bioc.write_xml, "json": bioc.write_json}[kind]
    found = Converted("bioc", {f"a.{kind}": written(write, [made], writing)})
    text = made.text
    if kind == "xml":
        held = "".join("\ufffd" if char in "\x00\x0b\uffff" else char for char in text)
        assert bool(writing.changed) == (held != text)
        text = held
    assert found.texts() == [text]
    assert found.mentions() == spans_of(made)


@pytest.mark.parametrize("kind", ["xml", "json"])
def test_the_library_reads_it(kind):
    made = [document("IL-2 gene", [(0, 9, "dna"), (0, 4, "protein")], "1"), document("", [], "2")]
    content = written({"xml": bioc.write_xml, "json": bioc.write_json}[kind], made)
    collection = library.load(io.BytesIO(content)) if kind == "xml" else biocjson.loads(content.decode())
    first, second = collection.documents
    library.validate(collection)
    assert (first.id, second.id) == ("1", "2")
    inner = first.passages[0].annotations[1]
    assert inner.infons == {"type": "protein", "confidence": "0.75", "parent": "dna:0-9"}
    assert collection.infons == {"offset_unit": "codepoint"}


def test_no_documents():
    assert json.loads(written(bioc.write_json, []))["documents"] == []
    assert library.load(io.BytesIO(written(bioc.write_xml, []))).documents == []
