"""What full tuning changed, as an adapter: each linear layer's difference from the base, truncated to a low rank.

The nearest matrix of rank r to a difference D keeps its r largest singular values: ``D ~ B A`` with ``B = U sqrt(S)``
and ``A = sqrt(S) V^T``. A fully tuned model is thus served like any other adapter, next to the unmodified base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OVERSAMPLED = 16  # extra directions that the search begins with (oversampling)
_ITERATIONS = 4  # power iterations: the spectra of differences decay slowly


def linear_weights(model: Any) -> dict[str, Tensor]:
    """The weights of the linear layers of a causal model's decoder layers, by their names in the model."""
    layers = {module for layer in model.get_decoder().layers for module in layer.modules()}
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if module in layers and isinstance(module, nn.Linear)
    }


def truncated(difference: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """B (out, rank) and A (rank, in) of a float32 difference (out, in), and the share of its squared norm they keep.

    Deterministic: the search begins with directions from a fixed seed.
    """
    smallest = min(difference.shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(difference, min(rank + _OVERSAMPLED, smallest), niter=_ITERATIONS)
    kept = min(rank, smallest)
    root = s[:kept].sqrt()
    b = difference.new_zeros(difference.shape[0], rank)
    a = difference.new_zeros(rank, difference.shape[1])
    b[:, :kept] = u[:, :kept] * root
    a[:kept] = root[:, None] * v[:, :kept].t()
    whole = float(difference.square().sum())
    return b, a, min(1.0, float(s[:kept].square().sum()) / whole) if whole else 1.0


@torch.no_grad()
def adapter(base: Any, weights: Mapping[str, Tensor], rank: int) -> tuple[Any, float]:
    """First, the base with an adapter of that rank that approximates the given linear weights, by name.

    Second, the share of the squared norm that the rank keeps, averaged over the layers.
    """
    from peft import LoraConfig, get_peft_model

    differences = {
        name: weights[name].float() - weight.detach().cpu().float() for name, weight in linear_weights(base).items()
    }
    lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    shares = []
    for name, module in model.get_base_model().named_modules():
        if (difference := differences.get(f"{name}.weight")) is not None:
            b, a, share = truncated(difference, rank)
            module.lora_B["default"].weight.copy_(b)
            module.lora_A["default"].weight.copy_(a)
            shares.append(share)
    return model, sum(shares) / len(shares)
