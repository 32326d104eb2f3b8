from __future__ import annotations

import re

from hypothesis import given

from shared.formats import conll
from shared.formats.common import Writing, flat
from tests.support.annotated import ALPHABET, Converted
from tests.support.formats import document, documents, written


def bare(text: str) -> str:
    return re.sub(r"\s", "", text)


@given(documents(ALPHABET + "\r\n\t#"))
def test_round_trip_but_for_white_space(made):
    writing = Writing()
    content = written(conll.write, [made], writing)
    found = Converted("conll", {"a.conll": content}, documents="docstart")
    assert [bare(text) for text in found.texts()] == [bare(made.text)]
    outermost = flat(made.entities, "", Writing())
    assert [(bare(text), type_) for text, type_ in found.surfaces()] == [(bare(e.text), e.type) for e in outermost]
    told = sum(count for what, count in writing.lost.items() if what.startswith("entity"))
    assert told == len(made.entities) - len(outermost)


def test_tokens_tags_and_sentences():
    text = "The IL-2 gene is on. 患者右肺腺癌。"
    made = document(text, [(4, 13, "dna"), (4, 8, "protein"), (23, 27, "disease"), (25, 28, "body")], "a\nb")
    writing = Writing()
    lines = written(conll.write, [made], writing).decode().split("\n")
    assert lines[:6] == ["-DOCSTART- (a b)\tO", "", "The\tO", "IL-2\tB-dna", "gene\tI-dna", "is\tO"]
    assert "右\tB-disease" in lines
    assert {what.split()[1]: count for what, count in writing.lost.items() if what.startswith("entity")}
    assert [count for what, count in sorted(writing.lost.items()) if what.startswith("entity")] == [1, 1]


def test_no_sentence_ends_within_an_entity():
    text = "Pain in the left arm.\n\nFever and chills were noted by the nurse."
    whole = written(conll.write, [document(text, [(12, 28, "disease")])]).decode()
    parted = written(conll.write, [document(text, [(12, 20, "disease")])]).decode()
    assert len(whole.strip().split("\n\n")) + 1 == len(parted.strip().split("\n\n"))
    assert "arm\tI-disease\n.\tI-disease\nFever\tI-disease" in whole
