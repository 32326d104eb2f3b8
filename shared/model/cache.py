"""The KV cache: keys and values of past tokens, in slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLOTS_MULTIPLE = 64  # slots are taken in multiples of this: few different lengths, so freed ones fit again


class Cache:
    """Keys and values of past tokens, in slots, for all layers. Not thread-safe.

    ``kv``: shape (layers, 2, KV heads, slots, head dim); ``scales``: for int8, the scale of each slot's key and value,
    shape (layers, 2, KV heads, slots). It grows and never shrinks: allocating memory costs more than writing to it.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        """``config``: the causal model's configuration."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = (config.num_hidden_layers, 2, config.num_key_value_heads)
        self.kv = torch.empty(*heads, 0, size, dtype=dtype, device=device)
        self.scales = torch.empty(*heads, 0, device=device)
        self.used = 0  # slots taken
        self._end = 0
        self._free: dict[int, list[int]] = {}  # first slots of the ranges given back, by length

    def clear(self) -> None:
        """Forgets all tokens."""
        self.used = self._end = 0
        self._free.clear()

    def take(self, slots: int) -> int:
        """Takes ``slots`` contiguous slots, rounded up to a multiple of :data:`SLOTS_MULTIPLE`; returns the first."""
        slots += -slots % SLOTS_MULTIPLE
        self.used += slots
        if free := self._free.get(slots):
            return free.pop()
        first = self._end
        self._end += slots
        if self._end > self.kv.shape[3]:
            capacity = max(self._end, 2 * self.kv.shape[3])
            self.kv = _grown(self.kv, capacity)
            self.scales = _grown(self.scales, capacity)
        return first

    def give_back(self, first: int, slots: int) -> None:
        """Frees what ``take(slots)`` returned as ``first``."""
        slots += -slots % SLOTS_MULTIPLE
        self.used -= slots
        self._free.setdefault(slots, []).append(first)

    def copy(self, source: int, to: int, slots: int) -> None:
        """Copies the contents of ``slots`` slots from ``source`` to ``to``."""
        self.kv[:, :, :, to : to + slots] = self.kv[:, :, :, source : source + slots]
        self.scales[:, :, :, to : to + slots] = self.scales[:, :, :, source : source + slots]


def _grown(old: Tensor, slots: int) -> Tensor:
    grown = old.new_empty(*old.shape[:3], slots, *old.shape[4:])
    grown[:, :, :, : old.shape[3]] = old
    return grown
