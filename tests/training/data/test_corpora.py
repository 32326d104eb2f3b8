import json

import pytest

from shared.settings import Settings
from training.data.corpora import CorpusError, GoldMention, corpus_folder, part, read, read_all


def write(folder, *rows, split="train"):
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


EGFR = {"start": 4, "end": 8, "type": "protein", "text": "EGFR"}
ROW = {"id": "1", "text": "The EGFR gene", "lang": "en", "entities": [EGFR]}


def test_read(tmp_path):
    (example,) = read(write(tmp_path / "genia", ROW), "train")
    assert example.mentions == (GoldMention(4, 8, "protein"),)
    assert "cell_line" in example.types  # annotated by the corpus, so its absence counts
    assert example.lang == "en"


def test_parts_are_disjoint_and_make_up_the_whole(tmp_path):
    rows = [ROW | {"id": str(n), "text": f"The EGFR gene {n}"} for n in range(50)]
    examples = read(write(tmp_path / "genia", *rows), "train")
    inside = [part(examples, 3, fold, inside=True) for fold in range(3)]
    assert sorted(e.id for fold in inside for e in fold) == sorted(e.id for e in examples)
    assert all(fold for fold in inside)
    assert [e for e in examples if e not in inside[1]] == part(examples, 3, 1, inside=False)


def test_labels_that_are_keys_need_no_mapping(tmp_path):
    (example,) = read(write(tmp_path / "mine", {**ROW, "lang": None}), "train")
    assert example.types == ("protein",)
    assert example.lang == "en"


GENE = {**ROW, "entities": [{**EGFR, "type": "GENE"}, {**EGFR, "type": "Protein"}]}


def test_a_given_mapping(tmp_path):
    folder = write(tmp_path / "mine", GENE)
    (example,) = read(folder, "train", {"GENE": "dna"})
    assert [m.type for m in example.mentions] == ["dna", "protein"]  # a label that names a type needs no mapping
    assert set(example.types) == {"dna", "protein"}
    (example,) = read(folder, "train", {"GENE": "dna", "Protein": "rna"})
    assert [m.type for m in example.mentions] == ["dna", "rna"]


def test_a_folder_that_has_the_name_of_a_known_corpus_takes_its_own_labels(tmp_path):
    own = {**ROW, "entities": [{**EGFR, "type": "Gene or gene product"}, {**EGFR, "type": "DISEASE"}]}
    (example,) = read(write(tmp_path / "ccks2017", own), "train")
    assert [m.type for m in example.mentions] == ["gene_product", "disease"]
    assert set(example.types) == {"gene_product", "disease"}
    with pytest.raises(CorpusError, match="that no type in the inventory has: GENE;"):
        read(write(tmp_path / "bc5cdr", GENE), "train")
    (example,) = read(tmp_path / "bc5cdr", "train", {"GENE": "dna"})
    assert set(example.types) == {"dna", "protein"}


def test_white_space_at_the_ends_of_mentions_is_trimmed_and_counted(tmp_path):
    spaced = {**EGFR, "start": 3, "end": 9, "text": " EGFR "}
    (example,) = read(write(tmp_path / "mine", {**ROW, "entities": [spaced, EGFR]}), "train")
    assert example.mentions == (GoldMention(4, 8, "protein"),) * 2
    assert example.trimmed == 1
    blank = {**EGFR, "start": 3, "end": 4, "text": " "}
    with pytest.raises(CorpusError, match=r"line 1: entities: offsets enclose only white space"):
        read(write(tmp_path / "mine", {**ROW, "entities": [blank]}), "train")


def test_a_given_mapping_goes_before_the_known_one_of_the_corpus(tmp_path):
    (example,) = read(write(tmp_path / "genia", ROW), "train", {"protein": "dna", "cell_line": ""})
    assert [m.type for m in example.mentions] == ["dna"]
    assert set(example.types) == {"dna", "rna", "cell_type"}


def test_a_label_is_left_out_on_purpose_only(tmp_path):
    folder = write(tmp_path / "mine", GENE)
    (example,) = read(folder, "train", {"GENE": ""})
    assert example.mentions == (GoldMention(4, 8, "protein"),)
    assert example.types == ("protein",)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({}, "GENE; give each a type with --map label=key, or leave it out with --map label="),
        ({"GENE": "gene"}, "has the key gene; the keys are: protein, "),
        ({"GENE": "dna", "Celll": ""}, "no label Celll to leave out; its labels are: GENE, Protein"),
        ({"GENE": "", "Protein": ""}, "no label of train.jsonl has a type"),
    ],
)
def test_a_wrong_mapping_names_the_remedy(tmp_path, mapping, says):
    with pytest.raises(CorpusError, match=says):
        read(write(tmp_path / "mine", GENE), "train", mapping)


def test_a_file_without_texts_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="no texts"):
        read(write(tmp_path / "mine"), "train")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"id": "1", "text": "secret"}, "line 1"),
        ({"text": "secret", "entities": []}, "line 1"),
        ({**ROW, "text": 5}, "line 1"),
        ({**ROW, "text": "secret \ud800"}, "line 1"),
        ({**ROW, "entities": ["secret"]}, "line 1"),
        ({**ROW, "entities": [{"start": 4, "end": 8}]}, "line 1"),
        ({**ROW, "entities": [{**EGFR, "start": "secret"}]}, "line 1"),
        ({**ROW, "entities": [{"start": 4, "end": 99, "type": "protein"}]}, "offsets"),
        ({**ROW, "entities": [{"start": 3, "end": 8, "type": "protein", "text": "EGFR"}]}, "offsets"),
        ({**ROW, "lang": "fr"}, "lang"),
    ],
)
def test_a_bad_row_names_its_line_and_not_its_text(tmp_path, row, says):
    with pytest.raises(CorpusError, match=says) as error:
        read(write(tmp_path / "genia", row), "train")
    assert "secret" not in str(error.value)
    assert "EGFR" not in str(error.value)


@pytest.mark.parametrize("line", ["[" * 100_000, "9" * 5000])
def test_a_line_that_is_too_much_for_json_is_named(tmp_path, line):
    (folder := tmp_path / "mine").mkdir()
    (folder / "train.jsonl").write_text(f"{line}\n")
    with pytest.raises(CorpusError, match="line 1"):
        read(folder, "train")


def test_a_missing_split_names_those_there_are(tmp_path):
    with pytest.raises(CorpusError, match="it has: train"):
        read(write(tmp_path / "genia", ROW), "test")


def test_a_missing_corpus_names_the_setting(tmp_path):
    with pytest.raises(CorpusError, match="BIOBRACKET_CORPORA"):
        corpus_folder("genia", Settings(corpora=None))
    write(tmp_path / "genia", ROW)
    assert corpus_folder("genia", Settings(corpora=tmp_path)) == tmp_path / "genia"
    assert corpus_folder(str(tmp_path / "genia"), Settings(corpora=None)) == tmp_path / "genia"


@pytest.mark.corpora
@pytest.mark.parametrize("name", ["genia", "cmeee_v2", "bc5cdr", "ccks2017", "bionlp13cg", "drug_leaflets_zh"])
def test_the_real_corpora(corpora, name):
    examples = read(corpora / name, "dev")
    assert examples
    for example in examples:
        assert {m.type for m in example.mentions} <= set(example.types)
        assert all(example.text[m.start : m.end] for m in example.mentions)


@pytest.mark.parametrize("given", ["", "genia,", "genia=", "genia=0", "genia=x", "=3", "genia,genia=1"])
def test_a_list_of_corpora_that_is_none_says_how_to_write_one(tmp_path, given):
    write(tmp_path / "genia", ROW, split="dev")
    settings = Settings(corpora=tmp_path)
    assert len(read_all("genia=1", "dev", settings)["genia"]) == 1
    with pytest.raises(CorpusError, match=r"corpora: .*(write them as|rename)"):
        read_all(given, "dev", settings)
