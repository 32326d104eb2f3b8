import pytest
import torch
from torch import nn

from shared.int8 import Int8Linear, quantise


def made(bias, outliers=1.0):
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    x = torch.randn(3, 20, 64)
    x[..., 5] *= outliers
    return linear, x


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outliers", [1.0, 100.0])
@torch.no_grad()
def test_is_the_layer_but_for_rounding(bias, outliers):
    linear, x = made(bias, outliers)
    quantised = Int8Linear(linear, x.abs().amax((0, 1)))
    assert quantised(x).shape == (3, 20, 48)
    assert error(quantised(x), linear(x)) < 0.02


@torch.no_grad()
def test_moving_the_size_of_large_inputs_into_the_weights_keeps_more_of_the_others():
    linear, x = made(False, 100.0)
    rest = x.clone()
    rest[..., 5] = 0  # what the other inputs say
    smooth, plain = Int8Linear(linear, x.abs().amax((0, 1))), Int8Linear(linear, torch.ones(64))
    said = linear(rest)
    assert error(smooth(x) - linear(x) + said, said) < error(plain(x) - linear(x) + said, said) / 2


@torch.no_grad()
def test_a_token_does_not_depend_on_the_others_and_keeps_its_number_format():
    linear, x = made(True)
    quantised = Int8Linear(linear, x.abs().amax((0, 1)))
    assert torch.equal(quantised(x)[1, 4], quantised(x[1, 4]))
    assert quantised(x.bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
def test_nothing_in_gives_nothing_out():
    linear, x = made(False)
    assert torch.equal(Int8Linear(linear, torch.zeros(64))(torch.zeros_like(x)), torch.zeros(3, 20, 48))


@torch.no_grad()
def test_a_model_is_quantised_by_what_its_layers_meet():
    linear, x = made(False, 100.0)
    model = nn.Sequential(linear, nn.GELU(), nn.Sequential(nn.Linear(48, 8)))
    expected = model(x)
    quantise(model, lambda: model(x))
    assert [type(layer) for layer in model.modules() if hasattr(layer, "weight")] == [Int8Linear, Int8Linear]
    assert error(model(x), expected) < 0.02
    assert not any(layer._forward_pre_hooks for layer in model.modules())
