from __future__ import annotations

import io
import json

import pyarrow.parquet
from hypothesis import given
from hypothesis import strategies as st

from shared.formats import parquet
from shared.formats.common import Writing, annotated
from tests.support.formats import document, documents, spans_of, written


@given(st.lists(documents(), max_size=3))
def test_round_trip(made):
    table = pyarrow.parquet.read_table(io.BytesIO(written(parquet.write, made)))
    rows = table.to_pylist()
    assert [row["text"] for row in rows] == [one.text for one in made]
    assert [{(e["start"], e["end"], e["type"]) for e in row["entities"]} for row in rows] == list(map(spans_of, made))
    assert table.schema.metadata[b"biobracket.offset_unit"] == b"codepoint"


def test_offsets_in_utf16_and_a_text_that_is_not_known():
    made = document("𝒜 asthma", [(2, 8, "disease")])
    (row,) = pyarrow.parquet.read_table(io.BytesIO(written(parquet.write, [made], Writing(unit="utf16")))).to_pylist()
    assert (row["entities"][0]["start"], row["entities"][0]["end"]) == (3, 9)
    assert json.loads(row["metadata"]) == {}
    content = written(parquet.write, [annotated(made.extraction, None)])
    assert pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()[0]["text"] is None
