import json

import pytest
from typer.testing import CliRunner

from services.cli import cli
from shared.messages import Document, Entity, Extraction, entity_id

run = CliRunner()

TEXTS = ("Patient 12 has an EGFR mutation.", "患者因右肺腺癌入院。", "No mention here.", "Kinase p38 and p53 again.")
GOLD = (
    [(18, 22, "Gene"), (18, 31, "Change")],
    [(4, 8, "disease"), (5, 6, "organ")],
    [],
    [(0, 10, "Gene"), (15, 18, "Gene"), (7, 10, "Gene")],
)
KEYS = {"Gene": "protein", "Change": "dna", "disease": "disease"}
MAP = ["--map", "Gene=protein", "--map", "Change=dna", "--map", "organ="]
RIGHT = [[(start, end, KEYS[label]) for start, end, label in spans if label in KEYS] for spans in GOLD]
POOR = [[(18, 22, "dna")], [(3, 8, "disease")], [(0, 2, "protein")], [(0, 10, "protein")]]


@pytest.fixture
def unseen(tmp_path, monkeypatch):
    """A folder in the corpora format with labels of its own, extractions of its texts, and no model at all."""
    for name in ("CORPORA", "ADAPTER", "BASE_MODEL"):
        monkeypatch.setenv(f"BIOBRACKET_{name}", str(tmp_path / "none"))
    (tmp_path / "unseen").mkdir()
    rows = [
        {"id": "same", "text": text, "entities": [{"start": s, "end": e, "type": label} for s, e, label in spans]}
        for text, spans in zip(TEXTS, GOLD, strict=True)
    ]
    (tmp_path / "unseen" / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, answers, revision in (("right", RIGHT, "beef"), ("poor", POOR, "feed")):
        lines = [made(text, spans, revision) for text, spans in zip(TEXTS, answers, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def made(text, spans, revision):
    return Extraction(
        document_id="any",
        text_sha256=Document(id="any", text=text).sha256,
        lang="en",
        types=tuple(KEYS.values()),
        entities=tuple(
            Entity(
                id=entity_id(type_, start, end),
                start=start,
                end=end,
                text=text[start:end],
                type=type_,
                confidence=0.5,
                generator_confidence=0.5,
            )
            for start, end, type_ in spans
        ),
        model_revision=revision,
    ).model_dump_json()


def evaluate(folder, *arguments, mapped=MAP):
    # A terminal wide enough for every table.
    return run.invoke(
        cli,
        ["evaluate", "--corpus", str(folder / "unseen"), "--split", "all", *mapped, *arguments],
        env={"COLUMNS": "120"},
    )


def test_earlier_extractions_are_scored_without_a_model(unseen):
    perfect = evaluate(unseen, "--from", str(unseen / "right.jsonl"), "--json")
    assert perfect.exit_code == 0, perfect.output
    result = json.loads(perfect.stdout)
    assert result["micro"]["f1"] == result["macro"]["f1"] == 1.0
    assert result["micro"]["gold"] == 6  # the seventh has the label that is left out
    assert result["model_revision"] == "beef"
    assert result["seconds"] is None
    assert result["map"] == {"Gene": "protein", "Change": "dna", "organ": ""}

    poor = json.loads(evaluate(unseen, "--from", str(unseen / "poor.jsonl"), "--json").stdout)
    assert (poor["micro"]["correct"], poor["micro"]["predicted"]) == (1, 4)
    assert poor["errors"]["predicted"] == {"type": 1, "boundary": 1, "boundary and type": 0, "spurious": 1}
    assert poor["errors"]["gold"] == {"type": 1, "boundary": 3, "boundary and type": 0, "missed": 1}
    assert poor["boundary_only"]["correct"] == 2


def test_gold_mentions_lose_white_space_at_their_ends_and_that_is_told(unseen):
    file = unseen / "unseen" / "all.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"start": 18, "end": 22', '"start": 17, "end": 22'))
    scored = evaluate(unseen, "--from", str(unseen / "right.jsonl"), "--json")
    assert json.loads(scored.stdout)["micro"]["f1"] == 1.0
    assert "1 mentions of the corpus have white space at their ends" in scored.stderr


def test_the_tables_have_intervals_and_errors(unseen):
    shown = evaluate(unseen, "--from", str(unseen / "poor.jsonl"))
    assert shown.exit_code == 0, shown.output
    for expected in ("micro", "macro", "95 %", "nested alone", "protein", "spurious", "missed", "unseen all: 4 texts"):
        assert expected in shown.output
    assert "Against" not in shown.output


def test_a_report_holds_scores_plots_and_extractions(unseen):
    folder = unseen / "made" / "report"
    arguments = ["--from", str(unseen / "right.jsonl"), "--against", str(unseen / "poor.jsonl"), "--resamples", "200"]
    shown = evaluate(unseen, *arguments, "--report", str(folder))
    assert shown.exit_code == 0, shown.output
    assert "Against model revision feed" in shown.output
    assert {file.name for file in folder.iterdir()} == {
        "scores.json", "scores.md", "predictions.jsonl", "types.png", "lengths.png", "errors.png",
    }  # fmt: skip
    result = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert result == json.loads(evaluate(unseen, *arguments, "--json").stdout)
    assert result["bootstrap"]["resamples"] == 200
    assert result["against"]["differences"]["micro.f1"]["value"] == pytest.approx(0.8)
    assert "Against model revision feed" in (folder / "scores.md").read_text(encoding="utf-8")
    assert (folder / "predictions.jsonl").read_bytes() == (unseen / "right.jsonl").read_bytes()
    for plot in folder.glob("*.png"):
        assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_run_against_itself_differs_by_nothing(unseen):
    file = str(unseen / "poor.jsonl")
    result = json.loads(evaluate(unseen, "--from", file, "--against", file, "--json").stdout)
    assert result["against"]["differences"]["micro.f1"] == {"value": 0.0, "interval": [0.0, 0.0], "p": 1.0}


def test_a_report_does_not_replace_the_run_it_is_compared_with(unseen):
    folder = unseen / "report"
    assert evaluate(unseen, "--from", str(unseen / "poor.jsonl"), "--report", str(folder)).exit_code == 0
    other = folder / "predictions.jsonl"
    before = other.read_bytes()
    result = evaluate(unseen, "--from", str(unseen / "right.jsonl"), "--against", str(other), "--report", str(folder))
    assert result.exit_code == 1
    assert "choose another one" in result.output
    assert other.read_bytes() == before


@pytest.mark.parametrize("option", ["--from", "--against"])
def test_extractions_of_other_texts_are_refused(unseen, option):
    result = evaluate(unseen, option, str(unseen / "poor.jsonl"), "--limit", "2")
    assert result.exit_code == 1
    assert "4 lines for 2 texts" in result.output
    assert "--limit" in result.output


@pytest.mark.parametrize(
    ("mapped", "says"),
    [
        ([], "Change, Gene; give each a type"),  # `disease` and `organ` are keys
        ([*MAP, "--map", "Gene"], "`Gene` is not `label=key`"),
        ([*MAP, "--map", "=protein"], "`=protein` is not `label=key`"),
        ([*MAP, "--map", "Gene=dna"], "Gene is given twice"),
        ([*MAP, "--map", "Cell="], "no label Cell to leave out"),
        ([*MAP[:-1], "organ=organs"], "has the key organs"),
    ],
)
def test_a_wrong_mapping_names_the_remedy(unseen, mapped, says):
    result = evaluate(unseen, "--from", str(unseen / "poor.jsonl"), mapped=mapped)
    assert result.exit_code == 1
    assert says in result.output
    assert "EGFR" not in result.output


def test_a_missing_adapter_names_the_setting(workplace):
    result = run.invoke(cli, ["evaluate", "--corpus", "toy"])
    assert result.exit_code == 1
    assert "BIOBRACKET_ADAPTER" in result.output


def test_a_missing_corpus_names_the_remedy(workplace):
    result = run.invoke(cli, ["evaluate", "--corpus", "none"])
    assert result.exit_code == 1
    assert "BIOBRACKET_CORPORA" in result.output
