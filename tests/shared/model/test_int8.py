"""The int8 model against the same model in float32."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from shared.model import int8, int8_kernels
from shared.model.attention import Block, use_packed_attention
from shared.model.body import Packed
from shared.model.int8 import Int8Body, quantised, supports
from shared.model.masks import both_ways, causal, sliding
from shared.model.products import MOST, int8_products
from tests.support.tiny import make_tiny_model

WINDOW = 6


def load(folder):
    return use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def block(start, length, past=0, slot=0):
    mask, positions = causal(length, past), torch.arange(past + length)
    return Block(start, start + length, mask, sliding(mask, positions[past:], positions, WINDOW), past, slot)


@pytest.fixture(scope="module", params=[1, 2], ids="groups-{}".format)
def model(request, tmp_path_factory):
    return load(make_tiny_model(tmp_path_factory.mktemp("tiny"), window=WINDOW, groups=request.param))


@pytest.fixture(scope="module")
def quantised_bodies(model):
    packed = Packed(model)
    return packed, dict(zip(int8_products(), made(packed), strict=True))


@pytest.fixture(params=int8_products())
def bodies(quantised_bodies, request):
    packed, made = quantised_bodies
    return packed, made[request.param]


@torch.inference_mode()
def made(packed):
    torch.manual_seed(0)
    ids = torch.randint(3, 200, (300,)).tolist()
    weights = quantised(packed, lambda: packed(ids, list(range(300)), [block(0, 300)], [299]))
    return [Int8Body(packed.config, weights, product) for product in int8_products().values()]


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 15, 16, 17, 300])  # 300: well beyond the window
def test_matches_the_float_model_within_rounding(bodies, length):
    torch.manual_seed(length)
    ids = torch.randint(3, 200, (length,)).tolist()
    expected, got = (body(ids, list(range(length)), [block(0, length)], range(length)) for body in bodies)
    assert got.shape == expected.shape
    assert error(got, expected) < 0.06


def product(linear, x):
    """A quantised layer's output."""
    rows = x * linear["smooth"]
    for row in rows.numpy():
        int8_kernels._hadamard(row, np.empty_like(row))
    scale = rows.abs().amax(1, keepdim=True) / 127
    return (rows / scale).round() @ linear["weight"].float() * scale * linear["scale"]


@torch.no_grad()
def test_an_outlier_channel_costs_the_others_no_precision():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 48, bias=False), nn.Linear(64, 16, bias=False)]
    x = torch.randn(40, 64)
    x[:, 5] *= 100.0
    others = x.clone()
    others[:, 5] = 0
    expected, said = (torch.cat([layer(inputs) for layer in layers], dim=1) for inputs in (x, others))
    smooth, plain = (int8._linear(layers, peaks) for peaks in (x.abs().amax(0), torch.ones(64)))
    assert error(product(smooth, x) - expected + said, said) < error(product(plain, x) - expected + said, said) / 2


@torch.no_grad()
def test_uncalibrated_inputs_do_no_harm():
    layer = nn.Linear(64, 48, bias=False)
    x = torch.randn(40, 64)
    assert error(product(int8._linear([layer], torch.zeros(64)), x), layer(x)) < 0.02


@torch.inference_mode()
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_a_token_does_not_depend_on_the_rest_of_the_stream(bodies, lengths):
    body = bodies[1]
    torch.manual_seed(sum(lengths))
    texts = [torch.randint(3, 200, (n,)).tolist() for n in lengths]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    blocks = [block(start, n) for start, n in zip(starts, lengths, strict=True)]
    together = body(
        [i for ids in texts for i in ids], [p for n in lengths for p in range(n)], blocks, range(sum(lengths))
    )
    for ids, start in zip(texts, starts, strict=True):
        alone = body(ids, list(range(len(ids))), [block(0, len(ids))], range(len(ids)))
        torch.testing.assert_close(together[start : start + len(ids)], alone, atol=2e-2, rtol=0)


@torch.inference_mode()
def test_cached_tokens_give_the_same_states(bodies):
    body = bodies[1]
    ids = torch.randint(3, 200, (20,)).tolist()
    whole = body(ids, list(range(20)), [block(0, 20)], range(20))
    cache = body.cache()
    slot = cache.take(20)
    body(ids[:12], list(range(12)), [block(0, 12, slot=slot)], [], cache)
    rest = body(ids[12:], list(range(12, 20)), [block(0, 8, past=12, slot=slot)], range(8), cache)
    torch.testing.assert_close(rest, whole[12:], atol=2e-2, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("wanted", [[3], [19, 0, 7], []])
def test_only_wanted_tokens_are_returned(bodies, wanted):
    ids = torch.randint(3, 200, (20,)).tolist()
    for body in bodies:
        whole = body(ids, list(range(20)), [block(0, 20)], range(20))
        got = body(ids, list(range(20)), [block(0, 20)], wanted)
        torch.testing.assert_close(got, whole[torch.tensor(wanted, dtype=torch.long)])


@torch.inference_mode()
def test_attention_can_be_bidirectional(bodies):
    ids = torch.randint(3, 200, (20,)).tolist()
    expected, got = (body(ids, list(range(20)), [Block(0, 20, *both_ways(20, WINDOW))], range(20)) for body in bodies)
    assert error(got, expected) < 0.06


@torch.inference_mode()
def test_threads_do_not_interfere(bodies):
    from concurrent.futures import ThreadPoolExecutor

    texts = [torch.randint(3, 200, (n,)).tolist() for n in range(20, 60)]

    def one(ids):
        with torch.inference_mode():
            return bodies[1](ids, list(range(len(ids))), [block(0, len(ids))], range(len(ids)))

    with ThreadPoolExecutor(4) as pool:
        for got, ids in zip(pool.map(one, texts), texts, strict=True):
            torch.testing.assert_close(got, one(ids), atol=2e-2, rtol=0)


@torch.inference_mode()
def test_all_machines_give_the_same_states(quantised_bodies):
    ids = torch.randint(3, 200, (40,)).tolist()
    first, *others = (body(ids, list(range(40)), [block(0, 40)], range(40)) for body in quantised_bodies[1].values())
    for states in others:
        torch.testing.assert_close(states, first, atol=1e-4, rtol=0)


@torch.no_grad()
def test_neighbouring_weights_are_within_the_limit():
    torch.manual_seed(0)
    weight = int8._linear([nn.Linear(64, 48, bias=False)], torch.ones(64))["weight"].int().abs()
    assert weight.unflatten(0, (-1, 2)).sum(1).max() in range(MOST - 2, MOST + 1)


def test_only_gemma_3_is_supported(bodies, model, tmp_path):
    assert supports(model.config)
    assert not supports(load(make_tiny_model(tmp_path, architecture="qwen3")).config)
    assert not any(module._forward_pre_hooks for module in model.modules())  # calibration has removed its hooks
