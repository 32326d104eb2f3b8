from __future__ import annotations

from hypothesis import given

from shared.formats import pubtator
from shared.formats.common import Writing
from tests.support.annotated import ALPHABET, Converted
from tests.support.formats import document, documents, spans_of, written


def kept(text: str) -> str:
    """What PubTator keeps of a text: one line break."""
    title, newline, abstract = text.partition("\n")
    title, abstract = (part.replace("\r", " ").replace("\n", " ") for part in (title, abstract))
    return f"{title}{newline}{abstract}" if abstract else title


@given(documents(ALPHABET + "\r\n\t"))
def test_round_trip(made):
    writing = Writing()
    found = Converted("pubtator", {"a.txt": written(pubtator.write, [made], writing)})
    assert found.texts() == [kept(made.text)]
    assert found.mentions() == spans_of(made)
    assert bool(writing.changed) == (kept(made.text) != made.text)


def test_several_documents_and_ids_that_the_format_cannot_hold():
    writing = Writing()
    made = [document("asthma", [(0, 6, "disease")], "1"), document("flu", [(0, 3, "disease")], "a|b\tc")]
    content = written(pubtator.write, made, writing)
    assert content.startswith(b"1|t|asthma\n1|a|\n1\t0\t6\tasthma\tdisease\n\n")
    assert [row["id"] for row in Converted("pubtator", {"a.txt": content}).rows] == ["1", "a_b_c"]
    assert writing.changed.total() == 1
    assert writing.lost.total() == 2  # confidences
