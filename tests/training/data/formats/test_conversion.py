import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.annotated import Converted, annotated
from training.data import corpora
from training.data.corpora import CorpusError, GoldMention
from training.data.formats import READERS
from training.data.formats.common import Reading
from training.data.formats.conversion import convert

FEVER = {"start_idx": 0, "end_idx": 2, "type": "sym", "entity": "发热"}


def rows(*entities, text="发热三天。"):
    return {"a.json": json.dumps([{"text": text, "entities": list(entities)}])}


# A corpus without a mention is refused: nothing tells which types it annotates.
@given(st.lists(annotated(), min_size=1, max_size=3).filter(lambda texts: any(mentions for _, mentions in texts)))
def test_what_is_written_is_read_by_training(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("corpora")
    items = [
        {
            "text": text,
            "entities": [
                {"start_idx": start, "end_idx": end, "type": label, "entity": text[start:end]}
                for start, end, label in mentions
            ],
        }
        for text, mentions in texts
    ]
    (folder / "a.json").write_text(json.dumps(items), encoding="utf-8")
    summary = convert(folder / "a.json", "cblue", folder / "mine" / "train.jsonl", Reading())
    examples = corpora.read(folder / "mine", "train")
    keys = {"Disease": "disease", "cell_line": "cell_line", "药物": "drug"}
    assert [(e.text, set(e.mentions)) for e in examples] == [
        (text, {GoldMention(start, end, keys[label]) for start, end, label in mentions}) for text, mentions in texts
    ]
    assert summary.mentions.total() == sum(len(m) for _, m in texts)


def test_every_format_has_a_reader():
    assert set(READERS) == {"brat", "bioc", "pubtator", "conll", "cblue"}


def test_languages():
    items = [{"text": text, "entities": []} for text in ("发热三天。", "Fever for days.")]
    files = {"a.json": json.dumps(items)}
    found = Converted("cblue", files)
    assert [row["lang"] for row in found.rows] == ["zh", "en"]
    assert found.summary.texts == {"zh": 1, "en": 1}
    assert {row["lang"] for row in Converted("cblue", files, lang="zh").rows} == {"zh"}


def test_labels_are_chosen_before_anything_is_wrong_with_them():
    bad = {**FEVER, "type": "dis", "entity": "咳嗽"}
    found = Converted("cblue", rows(FEVER, bad), labels={"sym"})
    assert found.surfaces() == [("发热", "sym")]
    assert found.reading.left_out.total() == 1
    assert found.summary.labels == {"sym", "dis"}


def test_labels_become_keys():
    found = Converted("cblue", rows(FEVER), mapping={"sym": "symptom"})
    assert found.surfaces() == [("发热", "symptom")]
    assert found.summary.mentions == {"symptom": 1}
    with pytest.raises(CorpusError, match="map: no type in the inventory has the key sign; keys: protein"):
        Converted("cblue", rows(FEVER), mapping={"sym": "sign"})


def test_a_mention_given_twice_is_one():
    found = Converted(
        "cblue", rows(FEVER, FEVER, {**FEVER, "type": "dis"}), mapping={"dis": "symptom", "sym": "symptom"}
    )
    assert found.surfaces() == [("发热", "symptom")]
    assert found.reading.left_out == {"duplicate mention": 2}


def test_empty_texts_are_left_out():
    files = {"a.json": json.dumps([{"text": " \n", "entities": []}, {"text": "发热三天。", "entities": [FEVER]}])}
    assert Converted("cblue", files).texts() == ["发热三天。"]


def test_a_lone_surrogate_is_bad():
    files = {"a.json": json.dumps([{"text": "发热三天。", "entities": [FEVER]}, {"text": "咳\ud800", "entities": []}])}
    with pytest.raises(CorpusError, match=r"item 2: .*surrogate"):
        Converted("cblue", files)
    assert Converted("cblue", files, skip_bad=True).texts() == ["发热三天。"]


@pytest.mark.parametrize("label", ["", "\ud800", "a\nb", "\x1b[2J"])
def test_a_label_that_cannot_be_shown_is_bad(label):
    files = rows(FEVER, {**FEVER, "type": label})
    with pytest.raises(CorpusError, match=r"item 1, entities\.1: label"):
        Converted("cblue", files)
    assert Converted("cblue", files, skip_bad=True).surfaces() == [("发热", "sym")]


def test_a_failure_leaves_what_was_there(tmp_path):
    source, out = tmp_path / "a.json", tmp_path / "out" / "train.jsonl"
    source.write_text(rows(FEVER)["a.json"], encoding="utf-8")
    convert(source, "cblue", out, Reading())
    before = out.read_bytes()
    items = [
        {"text": "发热三天。", "entities": [FEVER]},
        {"text": "发热三天。", "entities": [{**FEVER, "entity": "咳嗽"}]},
    ]
    source.write_text(json.dumps(items), encoding="utf-8")
    with pytest.raises(CorpusError, match="item 2"):
        convert(source, "cblue", out, Reading())
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_a_source_without_texts_or_that_is_not_there(tmp_path):
    with pytest.raises(CorpusError, match="INPUT: no file or folder"):
        convert(tmp_path / "none", "brat", tmp_path / "out.jsonl", Reading())
    (tmp_path / "corpus").mkdir()
    with pytest.raises(CorpusError, match="INPUT: corpus has no annotated text; check --format"):
        convert(tmp_path / "corpus", "brat", tmp_path / "out.jsonl", Reading())
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_cannot_be_written(tmp_path):
    source = tmp_path / "a.json"
    source.write_text(rows(FEVER)["a.json"], encoding="utf-8")
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(CorpusError, match="is a directory"):
        convert(source, "cblue", tmp_path / "out.jsonl", Reading())
    with pytest.raises(CorpusError, match=r"a\.json"):
        convert(source, "cblue", source / "out.jsonl", Reading())


def test_white_space_at_the_ends_of_mentions_is_trimmed_and_counted():
    text = "有 发热\u3000。 "
    given_ = [(1, 5, "sym"), (2, 4, "sym"), (2, 5, "dis")]
    entities = [{"start_idx": s, "end_idx": e, "type": t, "entity": text[s:e]} for s, e, t in given_]
    found = Converted("cblue", rows(*entities, text=text))
    assert found.mentions() == {(2, 4, "sym"), (2, 4, "dis")}
    assert found.reading.notes == {"mention trimmed of white space at its ends": 2}
    blank = {"start_idx": 1, "end_idx": 2, "type": "sym", "entity": " "}
    with pytest.raises(CorpusError, match=r"entities\.0: offsets that enclose only white space"):
        Converted("cblue", rows(blank, text=text))
    assert Converted("cblue", rows(blank, text=text), skip_bad=True).surfaces() == []


def test_a_normalised_text_of_a_mention_is_taken_from_the_document():
    text = "TNF-α与Sjo\u0308gren综合征"
    entities = [
        {"start_idx": 0, "end_idx": 5, "type": "pro", "entity": "TNF-a"},
        {"start_idx": 6, "end_idx": 17, "type": "dis", "entity": "Sj\u00f6gren综合征"},
    ]
    found = Converted("cblue", rows(*entities, text=text))
    assert found.surfaces() == [("TNF-α", "pro"), ("Sjo\u0308gren综合征", "dis")]
    assert found.reading.notes == {"mention normalised by the corpus, its text taken from the document": 2}
