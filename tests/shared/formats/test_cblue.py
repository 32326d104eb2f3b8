from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from shared.formats import cblue
from shared.formats.common import Writing
from tests.support.annotated import Converted
from tests.support.formats import document, documents, spans_of, written

MAP = {"dis": "disease"}


@given(st.lists(documents(), min_size=1, max_size=3))
def test_round_trip(made):
    writing = Writing()
    found = Converted("cblue", {"CMeEE.json": written(cblue.write, made, writing)}, mapping=MAP)
    assert found.texts() == [document.text for document in made]
    assert [found.mentions(i) for i in range(len(made))] == [spans_of(document) for document in made]
    others = sum(entity.type != "disease" for document in made for entity in document.entities)
    assert writing.changed.total() == others


def test_a_row():
    (row,) = json.loads(
        written(cblue.write, [document("患者因右肺腺癌入院。", [(3, 7, "disease"), (3, 5, "body")], "7")])
    )
    assert row["id"] == "7"
    assert row["entities"] == [
        {"start_idx": 3, "end_idx": 6, "type": "dis", "entity": "右肺腺癌"},
        {"start_idx": 3, "end_idx": 4, "type": "bod", "entity": "右肺"},
    ]
