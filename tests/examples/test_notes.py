"""The sample notes show what they say they show."""

import json
import re
from pathlib import Path

import pytest

from shared.messages import Document
from shared.text.language import detect

FILE = Path(__file__).parents[2] / "examples" / "notes.jsonl"
NOTES = [Document.model_validate_json(line) for line in FILE.read_text(encoding="utf-8").splitlines()]

# How each property that a note claims in its metadata shows in its text.
SHOWN = {
    "20,000 characters": lambda text: len(text) >= 20_000,
    "CRLF line endings": lambda text: text.count("\r\n") == text.count("\n") > 5,
    "emoji": lambda text: len(re.findall("[\U0001f300-\U0001faff]", text)) >= 3,
    "full-width characters": lambda text: "ＣＴ" in text and "ＷＢＣ１２．５" in text,
    "headings": lambda text: len(re.findall(r"^(?:[A-Z][A-Z ]+\b|[一二三四]、)", text, re.MULTILINE)) >= 3,
    "literal brackets": lambda text: re.search(r"\[[^\]\n]+\]", text) is not None,
    "nesting": lambda text: any(
        phrase in text
        for phrase in (
            "CD28 surface receptor",
            "GATA-1 binding site",
            "BRCA1 gene coding region",
            "anti-double-stranded DNA antibodies",
            "右下肺炎",
            "右侧大脑中动脉供血区急性脑梗死",
            "右肺下叶腺癌",
            "胰头癌",
            "肝细胞癌",
            "冠状动脉瘤",
        )
    ),
    "no entity": lambda text: True,  # for a reader to judge
    "no punctuation": lambda text: re.search(r"[.,;:!?，。；：！？、]", text) is None,
    "numbered list": lambda text: len(re.findall(r"^(?:\d+[.、．]|[（(]\d+[)）]|[１-９]．)", text, re.MULTILINE)) >= 2,
    "table": lambda text: len(re.findall(r"^(?:\|.*\||[^\t\n]+(?:\t[^\t\n]+)+)\r?$", text, re.MULTILINE)) >= 4,
    "tabs": lambda text: text.count("\t") >= 4,
}


def shows(document):
    return document.metadata["shows"]


def test_every_line_is_a_document_with_a_title():
    assert len(NOTES) >= 14
    assert len({note.id for note in NOTES}) == len(NOTES)
    assert len({note.sha256 for note in NOTES}) == len(NOTES)
    for note in NOTES:
        assert isinstance(note.metadata["title"], str)
        assert note.metadata["title"]
        assert note.text.strip()


def test_half_are_chinese():
    languages = [detect(note.text) for note in NOTES]
    assert languages.count("zh") * 2 == languages.count("en") * 2 == len(NOTES)


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note.id)
def test_the_language_given_is_the_one_detected(note):
    assert note.lang in (None, detect(note.text))


def test_some_leave_the_language_to_be_detected():
    assert {detect(note.text) for note in NOTES if note.lang is None} == {"en", "zh"}


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note.id)
def test_a_note_shows_what_it_claims(note):
    for claim in shows(note):
        assert SHOWN[claim](note.text), claim


def test_every_property_is_shown():
    assert {claim for note in NOTES for claim in shows(note)} == set(SHOWN)
    assert sum("no entity" in shows(note) for note in NOTES) == 1
    for claim in ("CRLF line endings", "emoji", "literal brackets", "nesting", "no punctuation", "table"):
        assert {detect(note.text) for note in NOTES if claim in shows(note)} == {"en", "zh"}, claim


def test_the_long_note_varies():
    (long,) = (note for note in NOTES if "20,000 characters" in shows(note))
    sentences = [line for line in long.text.splitlines() if len(line) > 100]
    assert len(sentences) == len(set(sentences)) >= 40


def test_the_file_is_plain_json_lines():
    raw = FILE.read_bytes()
    assert b"\r" not in raw  # CRLF is escaped, so that no tool changes it
    assert raw.endswith(b"}\n")
    for line in raw.decode("utf-8").splitlines():
        assert set(json.loads(line)) <= {"id", "text", "lang", "types", "metadata"}
