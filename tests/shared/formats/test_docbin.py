from __future__ import annotations

import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import DocBin

from shared.formats import docbin
from tests.support.formats import document, documents, spans_of, written


def read(content):
    return list(DocBin().from_bytes(content).get_docs(spacy.blank("xx").vocab))


@settings(deadline=None)
@given(st.lists(documents(), max_size=2))
def test_round_trip(made):
    docs = read(written(docbin.write, made))
    assert [doc.text for doc in docs] == [one.text for one in made]
    for doc, one in zip(docs, made, strict=True):
        group = doc.spans["biobracket"]
        assert {(s.start_char, s.end_char, s.label_) for s in group} == spans_of(one)
        assert group.attrs["confidence"] == [0.75] * len(one.entities)


def test_nested_entities_and_ids():
    (doc,) = read(written(docbin.write, [document("the IL-2 gene", [(4, 13, "dna"), (4, 8, "protein")], "7")]))
    assert doc.user_data["document_id"] == "7"
    assert [(e.text, e.label_) for e in doc.ents] == [("IL-2 gene", "dna")]
    assert [e.text for e in doc.spans["biobracket"]] == ["IL-2 gene", "IL-2"]
