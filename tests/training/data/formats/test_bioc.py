import json
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.annotated import Converted, annotated
from training.data.corpora import CorpusError

SIZES = {
    "code points": len,
    "UTF-8 bytes": lambda text: len(text.encode()),
    "UTF-16 units": lambda text: len(text.encode("utf-16-le")) // 2,
}
# What XML can hold and leaves as it is.
XML = "ab Z9.β患肺癌，𝒜é\u0301\u3000\u2028<&\n"
# No mention but the last one can be taken for it, so it shows which unit a document counts in.
ANCHOR = "⚓"


def document(passages, mentions, unit="code points", level="passages", key="type"):
    """A document as a dictionary: passages one character apart, mentions by code points of the whole text."""
    size = SIZES[unit]
    text = " ".join(passages)
    at = lambda point: size(text[:point])  # noqa: E731
    parts, begin = [], 0
    for passage in passages:
        parts.append({"offset": at(begin), "text": passage, "annotations": []})
        begin += len(passage) + 1
    parts[0]["annotations"] = [
        {
            "id": str(i),
            "infons": {key: label},
            "text": text[start:end],
            "locations": [{"offset": at(start), "length": at(end) - at(start)}],
        }
        for i, (start, end, label) in enumerate(mentions)
    ]
    if level == "sentences":
        return {"id": "d1", "passages": [{"offset": 0, "sentences": parts}]}
    if level == "document":
        return {"id": "d1", "passages": parts, "annotations": parts[0].pop("annotations")}
    return {"id": "d1", "passages": parts}


def as_json(*documents):
    return {"corpus.json": json.dumps({"source": "", "documents": documents}, ensure_ascii=False)}


def as_xml(*documents):
    def annotations(part):
        return "".join(
            f"<annotation id={quoteattr(a['id'])}>"
            + "".join(f"<infon key={quoteattr(k)}>{escape(v)}</infon>" for k, v in a["infons"].items())
            + "".join(f'<location offset="{s["offset"]}" length="{s["length"]}"/>' for s in a["locations"])
            + f"<text>{escape(a['text'])}</text></annotation>"
            for a in part.get("annotations", [])
        )

    def part(name, p):
        text = f"<text>{escape(p['text'])}</text>" if "text" in p else ""
        sentences = "".join(part("sentence", s) for s in p.get("sentences", []))
        return f"<{name}><offset>{p['offset']}</offset>{text}{annotations(p)}{sentences}</{name}>"

    body = "".join(
        f"<document><id>{d['id']}</id>{''.join(part('passage', p) for p in d['passages'])}{annotations(d)}"
        '<relation id="R1"><infon key="type">CID</infon><node refid="0" role="a"/></relation></document>'
        for d in documents
    )
    head = '<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE collection SYSTEM "BioC.dtd">'
    return {"corpus.xml": f"{head}<collection><source/>{body}</collection>"}


@given(
    st.lists(annotated(XML), min_size=1, max_size=3),
    st.sampled_from(list(SIZES)),
    st.sampled_from(["passages", "sentences", "document"]),
    st.sampled_from([as_json, as_xml]),
)
def test_round_trip(drawn, unit, level, write):
    passages, gold = [], set()
    for passage, mentions in drawn:
        shift = len(" ".join([*passages, ""]))
        passages.append(passage)
        gold |= {(start + shift, end + shift, label) for start, end, label in mentions}
    text = " ".join([*passages, ANCHOR])
    gold.add((len(text) - 1, len(text), "Disease"))
    found = Converted("bioc", write(document([*passages, ANCHOR], sorted(gold), unit, level)))
    assert found.texts() == [text]
    assert found.mentions() == gold
    points = all(SIZES[unit](c) == 1 for c in text)
    assert (found.reading.notes.total() > 0) is (not points)


def test_each_document_counts_as_it_does():
    passages, mentions = ["TNF-α and fever", "IL-1β and rash"], [(10, 15, "Disease"), (26, 30, "Disease")]
    units = ["code points", "UTF-8 bytes", "code points"]
    found = Converted("bioc", as_json(*(document(passages, mentions, unit) for unit in units)))
    assert [found.mentions(i) for i in range(3)] == [set(mentions)] * 3
    assert found.reading.notes == {"mention whose offsets counted UTF-8 bytes": 2}


def test_one_bad_annotation_does_not_change_the_unit():
    bad = document(["TNF-α and fever"], [(0, 5, "Gene"), (10, 15, "Disease")], "UTF-8 bytes")
    bad["passages"][0]["annotations"][0]["text"] = "TNF-b"
    with pytest.raises(CorpusError, match=r"corpus\.json, item 1, documents\.0, annotation 1: .*do not give") as error:
        Converted("bioc", as_json(bad))
    assert "TNF" not in str(error.value)
    found = Converted("bioc", as_json(bad), skip_bad=True)
    assert found.surfaces() == [("fever", "Disease")]


def test_normalised_texts_of_mentions_tell_the_unit_too():
    shown = document(["TNF-α and naïve"], [(0, 5, "Gene"), (10, 15, "Cell")], "UTF-8 bytes")
    for annotation, text in zip(shown["passages"][0]["annotations"], ["TNF-alpha", "naive"], strict=True):
        annotation["text"] = text
    found = Converted("bioc", as_json(shown))
    assert found.surfaces() == [("TNF-α", "Gene"), ("naïve", "Cell")]
    assert found.reading.notes["mention normalised by the corpus, its text taken from the document"] == 2


def test_gaps_are_spaces():
    apart = document(["Fever.", "Rash."], [(0, 5, "Disease")])
    apart["passages"][1]["offset"] += 3
    assert Converted("bioc", as_json(apart)).texts() == ["Fever.    Rash."]


def test_the_unit_that_leaves_less_space_where_no_annotation_tells():
    found = Converted("bioc", as_json(document(["发热。", "咳嗽。"], [(4, 6, "Symptom")], "UTF-8 bytes")))
    assert found.texts() == ["发热。 咳嗽。"]
    assert found.mentions() == {(4, 6, "Symptom")}


@pytest.mark.parametrize("offset", [2, -1, 10**12])
def test_passages_that_overlap_or_lie_far_apart(offset):
    bad = document(["Fever.", "Rash."], [(0, 5, "Disease")])
    bad["passages"][1]["offset"] = offset
    with pytest.raises(CorpusError, match=r"documents\.1: passages that overlap"):
        Converted("bioc", as_json(document(["Fine."], []), bad))
    found = Converted("bioc", as_json(document(["Fine."], []), bad), skip_bad=True)
    assert found.texts() == ["Fine."]


@pytest.mark.parametrize("write", [as_json, as_xml])
def test_several_locations(write):
    arms = document(["left and right arm"], [(0, 18, "Body")])
    arms["passages"][0]["annotations"][0] |= {
        "text": "left arm",
        "locations": [{"offset": 15, "length": 3}, {"offset": 0, "length": 4}],
    }
    found = Converted("bioc", write(arms, document(["Fine."], [])))
    assert found.surfaces(0) == []
    assert found.reading.left_out == {"discontinuous mention": 1}
    found = Converted("bioc", write(arms), discontinuous="cover")
    assert found.surfaces(0) == [("left and right arm", "Body")]


@pytest.mark.parametrize("write", [as_json, as_xml])
def test_the_infon_of_the_label(write):
    files = write(document(["Fever."], [(0, 5, "Disease")], key="class"))
    with pytest.raises(CorpusError, match=r"infon `type`; .*--type-infon \(there are: class\)"):
        Converted("bioc", files)
    assert Converted("bioc", files, type_infon="class").surfaces() == [("Fever", "Disease")]
    assert Converted("bioc", files, skip_bad=True).surfaces() == []


def test_the_name_of_an_infon_that_could_be_text_is_not_quoted():
    with pytest.raises(CorpusError, match=r"\(there are: …\)"):
        Converted("bioc", as_json(document(["Fever."], [(0, 5, "Disease")], key="患者 zq17")))


def test_shapes_of_json():
    one = document(["Fever."], [(0, 5, "Disease")])
    collection = {"documents": [one, one]}
    for value, count in [
        (one, 1),
        (collection, 2),
        ([collection, collection], 4),
        ([one, one], 2),
        ({"PubTator3": [one]}, 1),
    ]:
        found = Converted("bioc", {"a.json": json.dumps(value)})
        assert [found.surfaces(i) for i in range(count)] == [[("Fever", "Disease")]] * count
        assert len(found.rows) == count
    assert len(Converted("bioc", {"a.json": f"{json.dumps(one)}\n{json.dumps(collection)}\n"}).rows) == 3


def test_a_folder():
    one = document(["Fever."], [(0, 5, "Disease")])
    files = {"a/1.xml": as_xml(one)["corpus.xml"], "b.json": as_json(one, one)["corpus.json"], "README.md": "Read me."}
    assert len(Converted("bioc", files).rows) == 3


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.xml": "<collection>\n<document>\n<secret"}, r"a\.xml, line 3: not well-formed"),
        ({"a.xml": "<a><document><passage><offset>secret</offset></passage></document></a>"}, r"passages\.0\.offset"),
        ({"a.xml": '<?xml version="1.0" encoding="gb2312"?>\n<collection/>'}, r"a\.xml: an encoding"),
        ({"a.xml": '<?xml version="1.0" encoding="secret"?>\n<collection/>'}, r"a\.xml: an encoding"),
        ({"a.json": '{"text": "secret"}'}, r"item 1, passages: passages: field required"),
        ({"a.json": '["secret"]'}, r"item 1: item: "),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(files, says):
    with pytest.raises(CorpusError, match=says) as error:
        Converted("bioc", files)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("part", ["text", "locations"])
def test_an_annotation_without_its_parts_is_bad(part):
    lacking = document(["Fever and rash."], [(0, 5, "Disease"), (10, 14, "Disease")])
    del lacking["passages"][0]["annotations"][0][part]
    with pytest.raises(CorpusError, match="annotation 1: offsets"):
        Converted("bioc", as_json(lacking))
    assert Converted("bioc", as_json(lacking), skip_bad=True).surfaces() == [("rash", "Disease")]
