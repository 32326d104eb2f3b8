import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.annotated import Converted, annotated
from training.data.corpora import CorpusError


def row(text, mentions, last=0):
    """``last`` is 1 where ``end_idx`` is the mention's last character."""
    entities = [
        {"start_idx": start, "end_idx": end - last, "type": label, "entity": text[start:end]}
        for start, end, label in mentions
    ]
    return {"text": text, "entities": entities}


def as_list(rows):
    return {"CMeEE_dev.json": json.dumps(rows, ensure_ascii=False, indent=1)}


def as_lines(rows):
    return {"CMeEE_dev.json": "".join(json.dumps(r) + "\n" for r in rows)}


@given(st.lists(annotated("ab 9患肺癌，。𝒜\u2028"), min_size=1, max_size=4), st.sampled_from([0, 1]))
def test_round_trip(texts, last):
    rows = [row(text, mentions, last) for text, mentions in texts]
    for write in (as_list, as_lines):
        found = Converted("cblue", write(rows))
        assert [(r["text"], found.mentions(i)) for i, r in enumerate(found.rows)] == [(t, set(m)) for t, m in texts]
        assert found.reading.notes.total() == last * sum(len(m) for _, m in texts)


def test_ids_are_numbers_where_rows_have_none():
    rows = [{**row("发热。", [(0, 2, "sym")]), "id": 17}, row("咳嗽。", [(0, 2, "sym")])]
    found = Converted("cblue", as_list(rows))
    assert [r["id"] for r in found.rows] == ["17", "CMeEE_dev-2"]
    assert {r["lang"] for r in found.rows} == {"zh"}


@pytest.mark.parametrize("last", [0, 1])
def test_one_row_that_contradicts_the_others(last):
    rows = [row("肺部感染。", [(0, 4, "dis"), (0, 2, "bod")], last), row("肺部感染。", [(0, 2, "bod")], 1 - last)]
    with pytest.raises(CorpusError, match=r"item 2, entities\.0: end_idx.* follow .*item 1, entities\.0") as error:
        Converted("cblue", as_list(rows))
    assert "感染" not in str(error.value)
    found = Converted("cblue", as_list([*rows, row("发热。", [(0, 2, "sym")], last)]), skip_bad=True)
    assert [found.surfaces(i) for i in range(2)] == [[("肺部感染", "dis"), ("肺部", "bod")], [("发热", "sym")]]
    assert len(found.rows) == 2
    assert found.reading.left_out.total() == 1
    assert found.reading.notes.total() == 3 * last


def test_a_line_that_is_not_json():
    lines = as_lines([row("发热。", [(0, 2, "sym")]), row("咳嗽。", [(0, 2, "sym")])])["CMeEE_dev.json"].split("\n")
    files = {"CMeEE_dev.json": "\n".join([lines[0], lines[0][:20], *lines[1:]])}
    with pytest.raises(CorpusError, match="line 2: not JSON"):
        Converted("cblue", files)
    found = Converted("cblue", files, skip_bad=True)
    assert found.texts() == ["发热。", "咳嗽。"]
    assert found.reading.left_out == {"not JSON": 1}


@pytest.mark.parametrize("last", [0, 1])
def test_an_entity_elsewhere_is_bad_whatever_the_others_are(last):
    bad = row("肺部感染。", [(0, 4, "dis"), (0, 2, "bod")], last)
    bad["entities"][1]["entity"] = "胸部"
    with pytest.raises(CorpusError, match=r"line 2, entities\.1: offsets that do not give") as error:
        Converted("cblue", as_lines([row("发热。", [(0, 2, "sym")], last), bad]))
    assert "胸部" not in str(error.value)
    found = Converted("cblue", as_lines([row("发热。", [(0, 2, "sym")], last), bad]), skip_bad=True)
    assert found.surfaces(1) == [("肺部感染", "dis")]


def test_negative_offsets_are_bad():
    bad = row("感染肺", [])
    bad["entities"] = [{"start_idx": -1, "end_idx": 3, "type": "bod", "entity": "肺"}]
    with pytest.raises(CorpusError, match="outside"):
        Converted("cblue", as_list([bad]))


def test_a_file_without_labels():
    rows = [row("发热。", [(0, 2, "sym")]), {"text": "咳嗽。"}]
    with pytest.raises(CorpusError, match=r"item 2, entities: entities: field required") as error:
        Converted("cblue", as_list(rows))
    assert "咳嗽" not in str(error.value)
    found = Converted("cblue", as_list(rows), skip_bad=True)
    assert found.texts() == ["发热。"]
    assert found.reading.left_out == {"entities: field required": 1}
