import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.annotated import Converted, annotated
from training.data.corpora import CorpusError

DOCUMENT = """\
7|t|Aspirin | fever and rash
7|a|Aspirin helps. It may harm.
7\t0\t7\tAspirin\tChemical\tD1
7\t10\t24\tfever and rash\tDisease\tD2|D3\tfever|rash
7\t25\t32\tAspirin\tChemical
7\tCID\tD1\tD3
7\tAssociation\t11\t12\tNovel
"""


def block(name, title, abstract, mentions):
    text = f"{title}\n{abstract}"
    lines = [f"{name}|t|{title}", f"{name}|a|{abstract}"]
    lines += [f"{name}\t{start}\t{end}\t{text[start:end]}\t{label}\tX:1" for start, end, label in mentions]
    return "\n".join(lines) + "\n"


@given(st.lists(st.tuples(annotated(), annotated()), min_size=1, max_size=3))
def test_round_trip(documents):
    blocks, gold = [], []
    for name, ((title, in_title), (abstract, in_abstract)) in enumerate(documents):
        shift = len(title) + 1
        mentions = [*in_title, *((start + shift, end + shift, label) for start, end, label in in_abstract)]
        blocks.append(block(name, title, abstract, mentions))
        gold.append((f"{title}\n{abstract}", set(mentions)))
    found = Converted("pubtator", {"corpus.txt": "\n".join(blocks)})
    assert [(row["text"], found.mentions(i)) for i, row in enumerate(found.rows)] == gold


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_composite_mentions_count_and_relations_do_not(end):
    found = Converted("pubtator", {"corpus.txt": ("\n" + DOCUMENT).replace("\n", end)})
    assert found.rows[0]["id"] == "7"
    assert found.texts() == ["Aspirin | fever and rash\nAspirin helps. It may harm."]
    assert found.surfaces() == [("Aspirin", "Chemical"), ("fever and rash", "Disease"), ("Aspirin", "Chemical")]


def test_spaces_at_the_end_of_a_title_count():
    found = Converted("pubtator", {"corpus.txt": "7|t|Fever. \n7|a|Aspirin.\n7\t8\t15\tAspirin\tChemical\n"})
    assert found.surfaces() == [("Aspirin", "Chemical")]


@pytest.mark.parametrize("abstract", ["", "7|a|\n"])
def test_a_title_alone(abstract):
    assert Converted("pubtator", {"corpus.txt": f"7|t|Fever.\n{abstract}"}).texts() == ["Fever."]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("8\t0\t7\tAspirin\tChemical\tD1", "outside its document"),
        ("8|a|Aspirin", "outside its document"),
        ("7\t0\t7\tAspirin", "not a text"),
        ("7 and more of Aspirin", "outside its document"),
        ("7\tAspirin", "not a text"),
        ("7\t1\t8\tAspirin\tChemical\tD1", "do not give"),
    ],
)
def test_a_bad_line_is_named_or_left_out(line, says):
    files = {"corpus.txt": DOCUMENT + line + "\n"}
    with pytest.raises(CorpusError, match=r"corpus\.txt, line 8: .*" + says) as error:
        Converted("pubtator", files)
    assert "Aspirin" not in str(error.value)
    found = Converted("pubtator", files, skip_bad=True)
    assert len(found.mentions()) == 3
    assert found.reading.left_out.total() == 1


def test_a_file_that_does_not_begin_with_a_title():
    with pytest.raises(CorpusError, match="line 1: line outside its document"):
        Converted("pubtator", {"corpus.txt": "A plain text.\n"})
