import json

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import engines
from services.generation.engine import TagRequest
from shared.messages import Segment, TaggedLine
from shared.settings import Settings
from shared.text.tagging import decode
from tests.support.tiny import make_tiny_model

TYPES = ("protein", "disease")
TEXTS = ("Activation of the CD28 receptor.", "a", "右肺下叶腺癌 with EGFR 突变")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return Settings(base_model=str(make_tiny_model(folder / "base", seed=1)), adapter="", cache=folder / "cache")


def requests():
    return [
        TagRequest(Segment(document_id="d", index=i, start=0, end=len(text), text=text, lang="en"), TYPES)
        for i, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("name", ["copy", "copy_greedy", "copy_sequential"])
def test_copying_has_candidates_beyond_greedy_or_none(settings, name):
    tag, _ = engines.engine(name, settings)
    lines = tag(requests())
    assert [line.segment.text for line in lines] == list(TEXTS)
    if name == "copy_greedy":
        assert not any(line.alternatives for line in lines)


def test_floor_counts_every_token_once(settings):
    found = engines.floor(settings, requests(), engines.engine("copy", settings)[0](requests()))
    # The tiny tokeniser has a token a byte. A line has its text again at most, and some brackets and names.
    once = sum(len(text.encode()) for text in TEXTS)
    assert once < found["tokens"] < 30 * once
    assert found["gflop_per_token"] > 0
    assert found["seconds"] > 0


def line(tagged):
    text = decode(tagged)[0]
    segment = Segment(document_id="d", index=0, start=0, end=len(text), text=text, lang="en")
    return TaggedLine(segment=segment, types=("protein", "dna"), tagged=tagged if "[" in tagged else "", presence=1.0)


@pytest.mark.parametrize(
    ("tagged", "said"),
    [("ab", "<bos>Protein, DNA:\nab\n"), ("[ab | DNA]", "<bos>Protein, DNA:\nab\n[ab | DNA]")],
)
def test_the_floor_has_the_tokens_up_to_the_last_decision(tokenizer, tagged, said):
    made = line(tagged)
    request = TagRequest(made.segment, made.types)
    assert engines._needed(tokenizer, [request], [made]) == len(tokenizer.encode(said))


def test_the_header_of_types_is_counted_once(tokenizer):
    made = line("ab")
    request = TagRequest(made.segment, made.types)
    once, twice = (engines._needed(tokenizer, [request] * n, [made] * n) for n in (1, 2))
    assert twice - once == len("ab\n")


def report(seconds, found, segments=2):
    gold = [(0, 0, 4, "protein"), (1, 2, 3, "disease")]
    return {
        "segments": segments,
        "characters": 100,
        "seconds": seconds,
        "peak_mib": 7,
        "found": found,
        "gold": [g for g in gold if g[0] < segments],
        "floor": None,
    }


def test_ratios_are_of_rates_and_f1_is_on_the_same_segments():
    copy = report([1.0, 2.0, 3.0], [[0, 0, 4, "protein"], [1, 0, 1, "disease"]])
    paper = report([10.0], [[0, 0, 4, "protein"]], segments=1)
    of_copy, of_paper = (engines.summary(name, {"copy": copy, "paper": paper}) for name in ("copy", "paper"))
    assert of_copy["segments_per_second"] == 1.0
    assert of_copy["times_paper"] == 10.0
    assert of_paper["times_paper"] == 1.0
    assert of_copy["f1"] == 0.5
    assert of_paper["f1"] == of_paper["f1_of_copy"] == 1.0
    assert of_paper["entities_as_copy"] == 1.0
    assert "times_vllm" not in of_copy


def test_unknown_engines_are_refused():
    with pytest.raises(Exception, match="the known ones are paper"):
        engines.main(engines="jax", segments=1, repetitions=1, plot=None, as_json=False, worker="")


@pytest.fixture
def command(monkeypatch):
    """Runs the command in this process, with a measurement that costs nothing; what it was asked to measure."""
    asked = []
    monkeypatch.setattr(
        engines, "run_alone", lambda name, segments, _: asked.append(name) or report([1.0], [], segments)
    )
    app = typer.Typer()
    app.command()(engines.main)

    def run(settings, *arguments):
        asked.clear()
        for name in ("base_model", "adapter"):
            monkeypatch.setenv(f"BIOBRACKET_{name.upper()}", str(getattr(settings, name)))
        return CliRunner().invoke(app, arguments), list(asked)

    return run


def test_what_was_asked_for_is_measured_and_told(settings, command):
    names = "paper,transformers,copy,copy_greedy,encoder"
    found, asked = command(settings, "--engines", names, "--json")
    assert asked == names.split(",")
    assert list(json.loads(found.stdout)["engines"]) == asked
    shown, _ = command(settings, "--engines", "copy")
    assert "| copy |" in shown.stdout


def test_an_encoder_with_random_weights_has_a_time_and_no_score():
    copy, encoder = report([1.0], [[0, 0, 4, "protein"]]), report([4.0], [])
    found = {name: engines.summary(name, {"copy": copy, "encoder": encoder}) for name in ("copy", "encoder")}
    assert found["copy"]["times_encoder"] == 4.0
    assert "f1" in found["copy"]
    assert not {"f1", "f1_of_copy", "entities_as_copy"} & set(found["encoder"])


def test_a_run_of_nothing_is_refused(settings, command, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda _: None)
    found, asked = command(settings, "--engines", "vllm")
    assert (found.exit_code, asked) == (2, [])
    assert "none of them can run here" in found.stderr
