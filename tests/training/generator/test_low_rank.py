import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.tiny import make_tiny_model
from training.generator.low_rank import adapter, linear_weights, truncated


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 12), st.integers(0, 10**6))
def test_a_difference_of_the_rank_or_less_is_kept(out, into, rank, less, seed):
    source = torch.Generator().manual_seed(seed)
    true_rank = max(1, rank - less)
    difference = torch.randn(out, true_rank, generator=source) @ torch.randn(true_rank, into, generator=source)
    difference /= true_rank**0.5
    b, a, kept = truncated(difference, rank)
    assert (b.shape, a.shape) == ((out, rank), (rank, into))
    torch.testing.assert_close(b @ a, difference, atol=1e-4, rtol=1e-4)
    assert kept == pytest.approx(1.0, abs=1e-4)


def test_the_rest_of_the_singular_values_is_what_is_lost():
    source = torch.Generator().manual_seed(0)
    difference = torch.randn(60, 80, generator=source)
    b, a, kept = truncated(difference, 8)
    values = torch.linalg.svdvals(difference).square()
    assert kept == pytest.approx(float(values[:8].sum() / values.sum()), rel=0.02)
    assert float((difference - b @ a).square().sum()) == pytest.approx(float(values.sum()) * (1 - kept), rel=1e-3)


def test_nothing_is_lost_of_nothing():
    b, a, kept = truncated(torch.zeros(5, 7), 2)
    assert kept == 1.0
    assert not (b @ a).any()


def test_it_is_the_same_each_time_and_draws_from_no_one_elses_numbers():
    difference = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first, second = truncated(difference, 4), truncated(difference, 4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3"])
@torch.no_grad()
def test_the_adapter_leads_from_the_base_to_the_truncated_weights(tmp_path, architecture):
    folder = str(make_tiny_model(tmp_path / "base", architecture=architecture))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in linear_weights(base).items()}
    assert len(before) == 2 * 7
    after = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in before.items()}
    model, kept = adapter(base, after, 8)
    assert 0.3 < kept < 1.0
    model.save_pretrained(tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    served = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).merge_and_unload()
    for name, weight in linear_weights(served).items():
        b, a, _ = truncated(after[name] - before[name], 8)
        torch.testing.assert_close(weight, before[name] + b @ a, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(served.get_input_embeddings().weight, base.get_input_embeddings().weight)
