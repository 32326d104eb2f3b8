import re

import pytest
from hypothesis import given

from tests.support.annotated import ALPHABET, Converted, annotated
from training.data.corpora import CorpusError


def ann(text, mentions):
    """As brat writes it: no line break within the text of a mention."""
    flat = re.sub("[\r\n]", " ", text)
    return "".join(
        f"T{i}\t{label} {start} {end}\t{flat[start:end]}\n" for i, (start, end, label) in enumerate(mentions)
    )


def folder(ann, text="Pain in the left and right arm.\n"):
    return {"notes/a.txt": text, "notes/a.ann": ann}


@given(annotated(ALPHABET + "\r\n\t"))
def test_round_trip(drawn):
    text, mentions = drawn
    found = Converted("brat", {"a.txt": text, "a.ann": ann(text, mentions)})
    assert found.texts() == [text]
    assert found.mentions() == set(mentions)


def test_subfolders_give_ids_and_other_lines_are_passed_over():
    lines = (
        "T1\tSymptom 0 4\tPain\n"
        "T2\tBody 12 16\tleft\n"
        "R1\tAt Arg1:T1 Arg2:T2\n"
        "E1\tSymptom:T1 Site:T2\n"
        "A1\tNegated E1\n"
        "N1\tReference T1 UMLS:C0\tpain\n"
        "*\tEquiv T1 T2\n"
        "#1\tAnnotatorNotes T1\tsure?\n"
    )
    found = Converted("brat", {**folder(lines), "b.v2.txt": "Fine.", "b.v2.ann": "", "notes/._a.ann": b"\xff"})
    assert [row["id"] for row in found.rows] == ["b.v2", "notes/a"]
    assert found.surfaces(0) == []
    assert found.surfaces(1) == [("Pain", "Symptom"), ("left", "Body")]


def test_offsets_count_both_characters_of_a_windows_line_end():
    found = Converted("brat", folder("T1\tDrug 8 15\taspirin\r\n", "Takes\r\n\r\naspirin".replace("\r\n\r\n", "\r\n ")))
    assert found.surfaces() == [("aspirin", "Drug")]
    with pytest.raises(CorpusError, match="offsets"):
        Converted("brat", folder("T1\tDrug 6 13\taspirin\n", "Takes\r\naspirin"))


def test_discontinuous_mentions_are_left_out_or_covered():
    lines = "T1\tBody 12 16;27 30\tleft arm\nT2\tBody 21 30\tright arm\n"
    found = Converted("brat", folder(lines))
    assert found.surfaces() == [("right arm", "Body")]
    assert found.reading.left_out == {"discontinuous mention": 1}
    found = Converted("brat", folder(lines), discontinuous="cover")
    assert found.surfaces() == [("left and right arm", "Body"), ("right arm", "Body")]
    assert found.reading.notes.total() == 1
    with pytest.raises(CorpusError, match=r"notes/a\.ann, line 1"):
        Converted("brat", folder("T1\tBody 12 16;26 29\tleft arm\n"), discontinuous="cover")


def test_a_line_break_does_not_part_a_mention():
    found = Converted("brat", folder("T1\tBody 12 16;17 20\tleft arm\n", "Pain in the left\narm."))
    assert found.surfaces() == [("left\narm", "Body")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("T2\tBody 13 17\tleft", "offsets that do not give"),
        ("T2\tBody 12 99\tleft", "outside of the text"),
        ("T2\tBody 12 12\t", "enclose nothing"),
        ("T2\tBody 12\tleft", "malformed"),
        ("T2 Body 12 16 left", "malformed"),
    ],
)
def test_a_bad_line_is_named_or_left_out(line, says):
    files = folder(f"T1\tSymptom 0 4\tPain\n{line}\n")
    with pytest.raises(CorpusError, match=r"notes/a\.ann, line 2: .*" + says) as error:
        Converted("brat", files)
    assert "left\t" not in str(error.value)
    found = Converted("brat", files, skip_bad=True)
    assert found.surfaces() == [("Pain", "Symptom")]
    assert found.reading.left_out.total() == 1


def test_a_file_without_its_other_half():
    files = {**folder("T1\tSymptom 0 4\tPain\n"), "LICENSE.txt": "Free."}
    found = Converted("brat", files)
    assert len(found.rows) == 1
    assert found.reading.left_out == {"text without an .ann file": 1}
    with pytest.raises(CorpusError, match=r"lost\.ann: no \.txt file"):
        Converted("brat", {**files, "lost.ann": ""})
    assert Converted("brat", {**files, "lost.ann": ""}, skip_bad=True).reading.left_out.total() == 2


def test_a_text_that_is_not_utf_8():
    files = {**folder(""), "b.txt": b"caf\xe9", "b.ann": ""}
    with pytest.raises(CorpusError, match=r"b\.txt: text not in UTF-8"):
        Converted("brat", files)
    assert [row["id"] for row in Converted("brat", files, skip_bad=True).rows] == ["notes/a"]
