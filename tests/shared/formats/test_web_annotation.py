from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from shared.formats import web_annotation
from shared.formats.common import annotated
from tests.support.formats import document, documents, spans_of, written


@given(st.lists(documents(), max_size=2))
def test_positions_and_quotations_find_every_entity(made):
    page = json.loads(written(web_annotation.write, made))
    assert page["type"] == "AnnotationPage"
    items = iter(page["items"])
    for one in made:
        found = set()
        for _ in one.entities:
            item = next(items)
            position, quotation = item["target"]["selector"]
            assert one.text[position["start"] : position["end"]] == quotation["exact"]
            assert quotation["prefix"] + quotation["exact"] + quotation["suffix"] in one.text
            found.add((position["start"], position["end"], item["body"]["value"]))
        assert found == spans_of(one)
    assert next(items, None) is None


def test_without_the_text_and_with_an_id_of_any_characters():
    made = document("asthma", [(0, 6, "disease")], "病历/1 #")
    (item,) = json.loads(written(web_annotation.write, [annotated(made.extraction, None)]))["items"]
    assert item["target"]["source"] == "urn:x-biobracket:document:%E7%97%85%E5%8E%86%2F1%20%23"
    assert item["target"]["selector"][1] == {"type": "TextQuoteSelector", "exact": "asthma"}
