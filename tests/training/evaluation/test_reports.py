import importlib.util
import json

import pytest

from training.evaluation.reports import Comparison, Report, ReportError, Run, prepare
from training.evaluation.scores import Scores, score
from training.evaluation.significance import compare, intervals

TEXT = "secret " * 10
GOLD = [(0, 6, "protein"), (7, 13, "dna"), (7, 20, "dna"), (21, 27, "rna")]
PLOTS = ("types.png", "lengths.png", "errors.png")


def make(ours, theirs=None, mapping=None):
    """The report of a run that predicts ``ours`` where GOLD is right, compared with one that predicts ``theirs``."""
    documents = [score(TEXT, GOLD, said) for said in ours]
    comparison = None
    if theirs is not None:
        others = [score(TEXT, GOLD, said) for said in theirs]
        comparison = Comparison("other.jsonl", "feed", compare(documents, others, resamples=100))
    return Report(
        run=Run("toy", "test", "beef", segments=3, seconds=None, mapping=mapping or {}),
        scores=sum(documents, Scores()),
        intervals=intervals(documents, resamples=100),
        resamples=100,
        comparison=comparison,
    )


REPORT = make(
    [GOLD, GOLD[1:], [*GOLD[:1], (7, 20, "rna"), (8, 13, "dna"), (50, 56, "cell_type")]],
    [GOLD[:1], GOLD[:2], []],
    {"Gene": "dna", "Cell": ""},
)
EMPTY = Report(
    run=Run("toy", "test", "beef", segments=0, seconds=1.0, mapping={}),
    scores=(none := score(TEXT, [], [])),
    intervals=intervals([none], resamples=100),
    resamples=100,
)


def rows(table):
    return {cells[0]: cells[1:] for cells in table.rows}


def test_the_object_is_json_with_scores_intervals_and_differences():
    found = json.loads(json.dumps(REPORT.as_dict(), allow_nan=False))
    assert found["micro"]["f1"] == REPORT.scores.micro.f1
    low, high = found["intervals"]["micro.f1"]
    assert low <= found["micro"]["f1"] <= high
    assert found["intervals"].keys() >= {"micro.precision", "micro.recall", "macro.f1", "nested.f1", "types.dna.f1"}
    assert found["against"]["differences"]["micro.f1"].keys() == {"value", "interval", "p"}
    assert found["against"]["model_revision"] == "feed"
    assert found["map"] == {"Gene": "dna", "Cell": ""}
    assert json.loads(json.dumps(EMPTY.as_dict(), allow_nan=False))["against"] is None


def test_tables_agree_with_the_scores():
    scores = REPORT.scores
    assert rows(REPORT.overview())["micro"][2] == f"{scores.micro.f1:.4f}"
    assert rows(REPORT.overview())["macro"][2] == f"{scores.macro_f1:.4f}"
    assert [cells[0] for cells in REPORT.types().rows] == ["dna", "protein", "rna", "cell_type"]  # by gold mentions
    assert rows(REPORT.types())["cell_type"][-1] == ""  # no gold mention, no interval
    assert rows(REPORT.lengths())["1"][3:] == (str(scores.lengths["1"].gold), str(scores.lengths["1"].predicted))
    assert rows(REPORT.errors())["spurious"] == ("1", "9.1%", "", "")
    assert REPORT.errors().rows[0][1] == str(scores.micro.correct)
    assert rows(REPORT.against())["micro"][0] == f"{REPORT.comparison.differences['micro.f1'].value:+.4f}"
    assert EMPTY.against() is None


def test_every_table_is_regular():
    for report in (REPORT, EMPTY):
        for table in (report.overview(), report.types(), report.lengths(), report.errors(), report.against()):
            assert table is None or {len(row) for row in table.rows} <= {len(table.columns)}


def test_markdown_has_every_table_and_plot():
    page = REPORT.markdown()
    for title in ("Overview", "Types", "Lengths", "Errors", "Against model revision feed"):
        assert f"\n## {title}\n" in page
    for name in PLOTS:
        assert f"({name})" in page
    assert "Labels: Gene as dna, Cell left out." in page
    assert "| dna |" in page
    assert "Against" not in EMPTY.markdown()


@pytest.mark.parametrize("report", [REPORT, EMPTY])
def test_saved_files_match_their_names(tmp_path, report):
    folder = tmp_path / "a" / "b"
    prepare(folder)
    report.save(folder)
    assert json.loads((folder / "scores.json").read_text(encoding="utf-8")) == json.loads(json.dumps(report.as_dict()))
    assert (folder / "scores.md").read_text(encoding="utf-8") == report.markdown()
    for name in PLOTS:
        width, height = picture(folder / name)
        assert width > 500
        assert height > 100
    assert "secret" not in (folder / "scores.md").read_text(encoding="utf-8")


def picture(file):
    """Width and height of a PNG that decodes to more than one colour."""
    from PIL import Image

    with Image.open(file) as image:
        image.load()
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**24)) > 1
        return image.size


def test_an_unwritable_folder_is_reported_early(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="name another folder"):
        prepare(tmp_path / "file" / "report")
    (tmp_path / "taken" / "scores.json").mkdir(parents=True)
    with pytest.raises(ReportError, match="name another folder"):
        prepare(tmp_path / "taken")


def test_a_missing_matplotlib_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ReportError, match="pip install matplotlib"):
        prepare(tmp_path)
