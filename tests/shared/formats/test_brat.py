from __future__ import annotations

import io
import zipfile

from hypothesis import given
from hypothesis import strategies as st

from shared.formats import brat
from shared.formats.common import Writing
from tests.support.annotated import Converted
from tests.support.formats import document, documents, spans_of, written


@given(documents())
def test_round_trip(made):
    writing = Writing()
    found = Converted("brat", dict(brat.files([made], writing)))
    assert found.texts() == [made.text]
    assert found.mentions() == spans_of(made)
    assert not writing.lost


@given(st.lists(st.text(min_size=1, max_size=512), min_size=2, max_size=2, unique=True))
def test_names_of_files_are_safe_and_differ(ids):
    try:
        names = [brat.file_name(id_) for id_ in ids if id_.encode()]
    except UnicodeEncodeError:
        return
    assert len(set(names)) == len(names)
    for name in names:
        assert not {"/", "\\", "\0", "\n"} & set(name)
        assert not name.startswith((".", "-"))
        assert len(name.encode()) <= 200


def test_usual_ids_stay_and_others_are_told():
    assert [brat.file_name(id_) for id_ in ("PMC-1_2.v2", "病历-1")] == ["PMC-1_2.v2", "病历-1"]
    assert brat.file_name("../etc/passwd") == "%2E.%2Fetc%2Fpasswd"
    writing = Writing()
    names = [name for name, _ in brat.files([document("a", [], "a/b")], writing)]
    assert names == ["a%2Fb.txt", "a%2Fb.ann", "annotation.conf"]
    assert writing.changed.total() == 1


def test_a_mention_over_lines_is_fragments_and_confidence_is_a_note():
    made = document("left\r\narm", [(0, 9, "disease")])
    files = dict(brat.files([made], Writing()))
    lines = files["note-1.ann"].decode().split("\n")
    assert lines == ["T1\tdisease 0 4;6 9\tleft arm", "#1\tAnnotatorNotes T1\tconfidence 0.7500", ""]
    assert files["annotation.conf"].decode().splitlines()[:2] == ["[entities]", "disease"]


def test_an_entity_of_line_breaks_is_counted():
    writing = Writing()
    assert dict(brat.files([document("a\nb", [(1, 2, "disease")])], writing))["note-1.ann"] == b""
    assert writing.lost.total() == 1


def test_the_archive_is_the_same_each_time():
    made = [document("asthma", [(0, 6, "disease")])]
    content = written(brat.write, made)
    assert content == written(brat.write, made)
    assert zipfile.ZipFile(io.BytesIO(content)).read("note-1.txt") == b"asthma"
