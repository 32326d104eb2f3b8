"""Which tokens of a packed stream may see which, as masks: true where a token may look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def causal(length: int, past: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Mask of shape (length, past + length): all of the past, and itself up to the token."""
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)


def block_mask(prefix: int, lines: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Who sees whom: causal, the prefix by all, each line by itself only. Lengths in tokens; shape (n, n)."""
    n = prefix + sum(lines)
    mask = causal(n, device=device)
    at = prefix
    for length in lines:
        mask[at + length :, at : at + length] = False
        at += length
    return mask


def both_ways(
    length: int, window: int | None = None, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor | None]:
    """Masks of a block whose tokens all see one another, and of its sliding layers, as :func:`sliding` gives it."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    if window is None or length <= window:
        return mask, None
    at = torch.arange(length, device=device)
    return mask, (at[:, None] - at[None, :]).abs() < window


def sliding(mask: Tensor, queries: Tensor, keys: Tensor, window: int | None) -> Tensor | None:
    """The mask of sliding layers, by position; none where every admissible key is inside the window."""
    if window is None or int(queries.max()) < window:
        return None
    return mask & (queries[:, None] - keys[None, :] < window)
