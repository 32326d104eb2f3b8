import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from training.tuning.merged_lora import MergedLora


def model(bias):
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(12, 20, bias=bias), nn.GELU(), nn.Linear(20, 7, bias=bias)).double()
    found = get_peft_model(plain, LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"]))
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return found.double()


def gradients(found, x):
    found(x).square().sum().backward()
    return {name: p.grad for name, p in found.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("bias", [False, True])
def test_outputs_and_gradients_are_those_of_the_adapter(bias):
    expected, merged = model(bias), model(bias)
    MergedLora(merged)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(merged(right), expected(left))
    of_expected, of_merged = gradients(expected, left), gradients(merged, right)
    assert len(of_merged) == 4
    torch.testing.assert_close(of_merged, of_expected)
    torch.testing.assert_close(right.grad, left.grad)


def test_a_changed_adapter_is_seen_after_a_refresh():
    expected, changed = model(bias=True), model(bias=True)
    merged = MergedLora(changed)
    x = torch.randn(3, 12, dtype=torch.float64)
    for found in (expected, changed):
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(2)
    assert not torch.allclose(changed(x), expected(x))
    merged.refresh()
    torch.testing.assert_close(changed(x), expected(x))
