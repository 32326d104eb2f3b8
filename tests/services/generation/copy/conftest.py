from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.text.grammar import CopyTokens
from tests.support.copying import made
from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="module", params=[(0, 512), (1, 512), (2, 512), (3, 24)], ids=["0", "1", "2", "3-window"])
def folder(request, tmp_path_factory):
    seed, window = request.param
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=seed, window=window)


@pytest.fixture(scope="module")
def reference(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, CopyTokens(AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module", params=[4, 256], ids="lookahead-{}".format)
def engine(folder, request):
    return made(folder, lookahead=request.param)
