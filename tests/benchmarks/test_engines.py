import pytest

from benchmarks import engines
from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from shared.messages import Segment
from shared.settings import Settings
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


@pytest.mark.parametrize("together", [1, 4])
def test_transformers_say_what_the_copy_engine_says(settings, together, monkeypatch):
    monkeypatch.setenv("BIOBRACKET_GENERATION_DTYPE", "bfloat16")
    from services.generation.copy import CopyEngine

    copied = CopyEngine.load(settings, GenerationConfig()).tag(requests())
    said = engines.Generate(settings, together).tag(requests())
    for one, other in zip(copied, said, strict=True):
        assert [(line.type, line.segment) for line in one] == [(line.type, line.segment) for line in other]
    # Two ways to compute in bfloat16 differ where a choice is nearly even.
    ours, theirs = (set(engines.spans(of)) for of in (copied, said))
    assert len(ours & theirs) >= 0.5 * len(ours | theirs) > 0


def test_floor_counts_every_token_once(settings):
    from services.generation.copy import CopyEngine

    lines = CopyEngine.load(settings, GenerationConfig()).tag(requests())
    found = engines.floor(settings, requests(), lines)
    assert found["tokens"] > sum(len(text.encode()) for text in TEXTS)  # the tiny tokeniser has bytes
    assert found["gflop_per_token"] > 0
    assert found["seconds"] > 0


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
    of_copy, of_paper = (engines.summary(of, {"copy": copy, "paper": paper}) for of in (copy, paper))
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
