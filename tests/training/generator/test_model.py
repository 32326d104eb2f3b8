import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from shared.settings import Settings
from tests.support.generators import config, corpus, trained
from tests.support.tiny import make_tiny_model
from training.generator.model import build


def test_full_tuning_begins_with_the_adapter_merged(tmp_path):
    corpus(tmp_path / "corpora" / "toy")
    base = make_tiny_model(tmp_path / "base")
    settings = Settings(base_model=str(base), corpora=tmp_path / "corpora", cache=tmp_path, adapter="")
    first = trained(tmp_path / "first", settings, max_tokens=600)
    whole = AutoModelForCausalLM.from_pretrained(settings.base_model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(whole, str(first)).merge_and_unload()
    model = build(config(tuning="full", init=str(first)), settings, torch.device("cpu"))
    assert not hasattr(model, "peft_config")
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if ".layers." in name}
    for (name, weight), (other, merged) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(weight.detach(), merged.detach())
