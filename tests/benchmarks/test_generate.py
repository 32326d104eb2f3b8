import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks import engines
from benchmarks.generate import Generate, script_of
from services.generation.engine import TagRequest
from shared.messages import Segment
from shared.model.base_model import load_base
from shared.model.digests import write_sums
from shared.model.scheme import write_scheme
from shared.settings import Settings
from tests.support.tiny import make_tiny_model

TYPES = ("protein", "disease")
TEXTS = ("Activation of the CD28 receptor.", "a", "右肺下叶腺癌 with EGFR 突变")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder, adapter = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("adapter")
    made = Settings(
        base_model=str(make_tiny_model(folder / "base", seed=6, head=32)), adapter="", cache=folder / "cache"
    )
    get_peft_model(load_base(made, torch.float32), LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    write_scheme(adapter)
    write_sums(adapter)
    return made.model_copy(update={"adapter": str(adapter)})


def requests():
    return [
        TagRequest(Segment(document_id="d", index=i, start=0, end=len(text), text=text, lang="en"), TYPES)
        for i, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("together", [1, 4])
def test_transformers_say_what_the_copy_engine_says(settings, together, monkeypatch):
    monkeypatch.setenv("BIOBRACKET_GENERATION_DTYPE", "bfloat16")
    copied = engines.engine("copy", settings)[0](requests())
    said = Generate(settings, together).tag(requests())
    assert [(line.types, line.segment) for line in copied] == [(line.types, line.segment) for line in said]
    # Two ways to compute in bfloat16 differ where a choice is nearly even.
    ours, theirs = (set(engines.spans(lines)) for lines in (copied, said))
    assert len(ours & theirs) >= 0.5 * len(ours | theirs) > 0


def test_a_prompt_has_the_types_before_the_text(tokens, tokenizer):
    (first, *_) = requests()
    assert tokenizer.decode(script_of(tokens, first).prompt()).endswith("Protein, Disease:\n" + TEXTS[0] + "\n")
