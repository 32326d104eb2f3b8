import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(annotated("ab\r\n患") | annotated("ab\n患").map(lambda d: (d[0].replace("\n", "\r\n"), [])), st.data())
def test_windows_line_ends_and_marks_count_as_the_mentions_of_each_text_tell(drawn, data):
    text, mentions = drawn[0] + "\r\n⚓", [*drawn[1], (len(drawn[0]) + 2, len(drawn[0]) + 3, "Anchor")]
    mark = data.draw(st.sampled_from(["", "\ufeff"]))
    kept = [(s + len(mark), e + len(mark), label) for s, e, label in mentions]
    lines = ann(text, mentions).splitlines()
    # The same mentions with offsets of a tool that reads every line end as one character.
    at = lambda point: len(text[:point].replace("\r\n", "\n"))  # noqa: E731
    for count in (at, lambda point: point + len(mark)):
        written = "".join(
            f"T1\t{label} {count(s)} {count(e)}\t{line.split(chr(9), 2)[2]}\n"
            for (s, e, label), line in zip(mentions, lines, strict=True)
        )
        found = Converted("brat", {"a.txt": mark + text, "a.ann": written})
        assert found.texts() == [mark + text]
        assert found.mentions() == set(kept)


def test_offsets_that_count_a_windows_line_end_once_are_noted():
    found = Converted("brat", folder("T1\tDrug 8 15\taspirin\r\n", "Takes\r\n aspirin"))
    assert found.surfaces() == [("aspirin", "Drug")]
    assert not +found.reading.notes
    found = Converted("brat", folder("T1\tSign 0 5\tTakes\nT2\tDrug 6 13\taspirin\n", "Takes\r\naspirin"))
    assert found.surfaces() == [("Takes", "Sign"), ("aspirin", "Drug")]
    assert found.reading.notes == {"mention whose offsets counted a Windows line ending as one character": 1}
    with pytest.raises(CorpusError, match=r"a\.ann, line 1: offsets"):
        Converted("brat", folder("T1\tDrug 5 12\taspirin\n", "Takes\r\naspirin"))


def test_fragments_in_another_order_than_their_words():
    for fragments, words in (("27 30;12 16", "left arm"), ("12 16;27 30", "arm left"), ("27 30;12 16", "arm left")):
        found = Converted("brat", folder(f"T1\tBody {fragments}\t{words}\n"), discontinuous="cover")
        assert found.surfaces() == [("left and right arm", "Body")]


@pytest.mark.parametrize(("text", "annotations"), [("a.TXT", "a.ANN"), ("a.txt", "a.a1"), ("a.Txt", "a.A1")])
def test_endings_of_files(text, annotations):
    found = Converted("brat", {text: "Pain", annotations: "T1\tSymptom 0 4\tPain\n", "a.a2": "T2\tEvent 0 4\tPain\n"})
    assert [row["id"] for row in found.rows] == ["a"]
    assert found.surfaces() == [("Pain", "Symptom")]
    with pytest.raises(CorpusError, match=rf"{annotations}, line 1: malformed"):
        Converted("brat", {text: "Pain", annotations: "T1\n"})


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
        ("T2\tBody 12 99\tleft", "outside the text"),
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
