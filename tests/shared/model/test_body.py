import torch
from transformers import AutoModelForCausalLM

from shared.model.attention import Block, use_packed_attention
from shared.model.body import Packed
from shared.model.masks import causal
from tests.support.tiny import make_tiny_model


@torch.inference_mode()
def test_padding_changes_nothing(tmp_path):
    folder = make_tiny_model(tmp_path, window=6)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().get_decoder()
    body = Packed(use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()))
    ids, positions = [5, 6, 7], [0, 1, 2]
    hidden = body(ids, positions, [Block(0, 3, causal(3))], range(3), body.cache())
    assert hidden.shape[0] == 3
    torch.testing.assert_close(hidden, plain(torch.tensor([ids])).last_hidden_state[0], atol=1e-4, rtol=1e-4)
