import pytest

from shared.messages import Candidate, Segment
from training.data.candidates import digest, rows, write, wrong
from training.data.corpora import CorpusError, Example, GoldMention

TEXT = "The CD28 gene binds."
EXAMPLE = Example("1", TEXT, "en", (GoldMention(4, 8, "protein"),), ("protein", "dna"))
SEGMENT = Segment(document_id="0", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")


def candidate(start, end, type_):
    return Candidate(
        segment=SEGMENT, type=type_, start=start, end=end, text=TEXT[start:end], generator_confidence=0.75, greedy=False
    )


def test_wrong_candidates_are_looked_up_by_text(tmp_path):
    found = rows([EXAMPLE, EXAMPLE], [[candidate(4, 8, "protein"), candidate(4, 13, "protein")], []])
    assert [(row.start, row.end, row.right) for row in found] == [(4, 8, True), (4, 13, False)]
    write(tmp_path / "a.jsonl", found)
    write(tmp_path / "b.jsonl", rows([EXAMPLE], [[candidate(4, 8, "dna")]]))
    assert "CD28" not in (tmp_path / "a.jsonl").read_text()
    assert wrong([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]) == {
        digest(TEXT): [GoldMention(4, 13, "protein"), GoldMention(4, 8, "dna")]
    }
    assert wrong([]) == {}
    assert wrong([tmp_path]) == wrong([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    write(tmp_path / "c.jsonl", rows([EXAMPLE], [[candidate(4, 8, "protein")]]))
    assert wrong([tmp_path / "c.jsonl"]) == {digest(TEXT): []}


@pytest.mark.parametrize("content", ["{}", "not JSON", None])
def test_an_invalid_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(CorpusError, match=r"a\.jsonl.*biobracket candidates"):
        wrong([tmp_path / "a.jsonl"])


def test_a_folder_without_files_is_named(tmp_path):
    with pytest.raises(CorpusError, match=r"no \.jsonl file.*biobracket candidates"):
        wrong([tmp_path])
