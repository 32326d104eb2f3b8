"""Attention masks of packed streams: true where a token may attend."""

from __future__ import annotations

import torch
from torch import Tensor


def causal(length: int, past: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Causal mask of shape (length, past + length): every token sees the past, and the block up to itself."""
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)


def both_ways(
    length: int, window: int | None = None, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Bidirectional mask of a block, and that of its sliding-window layers, None as in :func:`sliding`."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    if window is None or length <= window:
        return mask, None
    at = torch.arange(length, device=device)
    return mask, (at[:, None] - at[None, :]).abs() < window


def sliding(mask: Tensor, queries: Tensor, keys: Tensor, window: int | None) -> Tensor | None:
    """A mask cut to the sliding window by position; None where the window makes no difference."""
    if window is None or int(queries.max()) < window:
        return None
    return mask & (queries[:, None] - keys[None, :] < window)
