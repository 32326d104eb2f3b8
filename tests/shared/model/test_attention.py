import pytest
import torch
from transformers import AutoModelForCausalLM

from shared.model.attention import Block, run, use_packed_attention
from shared.model.cache import Cache
from shared.model.masks import causal, sliding
from tests.support.tiny import make_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), window=6)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    packed = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    return plain.get_decoder(), packed.get_decoder()


def windowed(length, past=0):
    mask = causal(length, past)
    positions = torch.arange(past + length)
    return mask, sliding(mask, positions[past:], positions, 6)


@torch.inference_mode()
def test_sequences_in_one_stream_are_as_if_alone(models):
    plain, packed = models
    torch.manual_seed(0)
    sequences = [torch.randint(3, 200, (n,)) for n in (5, 1, 13)]
    blocks, start = [], 0
    for sequence in sequences:
        mask, window = windowed(len(sequence))
        blocks.append(Block(start, start + len(sequence), mask, window))
        start += len(sequence)
    hidden = run(packed, torch.cat(sequences), torch.cat([torch.arange(len(s)) for s in sequences]), blocks)
    expected = torch.cat([plain(s[None]).last_hidden_state[0] for s in sequences])
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_cached_keys_and_values_replace_their_tokens(models):
    plain, packed = models
    torch.manual_seed(1)
    ids = torch.randint(3, 200, (14,))
    cache = Cache(packed.config, torch.float32)
    slot = cache.take(14)
    for start, end in ((0, 4), (4, 9), (9, 14)):
        mask, window = windowed(end - start, start)
        block = Block(0, end - start, mask, window, start, slot)
        hidden = run(packed, ids[start:end], torch.arange(start, end), [block], cache)
    torch.testing.assert_close(hidden, plain(ids[None]).last_hidden_state[0, 9:], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_copy_of_cached_tokens_can_be_continued_independently(models):
    plain, packed = models
    torch.manual_seed(2)
    prefix, *rests = (torch.randint(3, 200, (n,)) for n in (5, 3, 4))
    cache = Cache(packed.config, torch.float32)
    first = cache.take(5)
    run(packed, prefix, torch.arange(5), [Block(0, 5, *windowed(5), slot=first)], cache)
    slots = [cache.take(5 + len(rest)) for rest in rests]  # the cache grows, and keeps what it holds
    for slot, rest in zip(slots, rests, strict=True):
        cache.copy(first, slot, 5)
        block = Block(0, len(rest), *windowed(len(rest), 5), past=5, slot=slot)
        hidden = run(packed, rest, torch.arange(5, 5 + len(rest)), [block], cache)
        expected = plain(torch.cat((prefix, rest))[None]).last_hidden_state[0, 5:]
        torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_plain_model(models):
    packed = models[1]
    ids = torch.randint(3, 200, (5,))
    gradients = []
    for model in models:
        model.zero_grad()
        hidden = run(model, ids, torch.arange(5), [Block(0, 5, causal(5))]) if model is packed else None
        (model(ids[None]).last_hidden_state[0] if hidden is None else hidden).pow(2).sum().backward()
        gradients.append(model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)
