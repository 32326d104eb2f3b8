"""Keys and values of past tokens, in slots."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROW = 64  # slots: rows of a few lengths only can be used again


class Cache:
    """Keys and values of tokens that are past, in slots, for all layers.

    ``kept``: shape (layers, 2, KV heads, slots, head dim); ``steps``: of 8-bit integers, what one unit of a slot stands
    for, shape (layers, 2, KV heads, slots). It grows, and what it has taken it keeps: fresh memory costs more
    than the numbers written to it. For one thread at a time.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        """``config``: of the causal model whose tokens they are."""
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = (config.num_hidden_layers, 2, config.num_key_value_heads)
        self.kept = torch.empty(*heads, 0, size, dtype=dtype, device=device)
        self.steps = torch.empty(*heads, 0, device=device)
        self.used = 0  # slots that are taken
        self._begun = 0
        self._free: dict[int, list[int]] = {}  # rows of slots that were given back, by their length

    def clear(self) -> None:
        """Forget all tokens."""
        self.used = self._begun = 0
        self._free.clear()

    def take(self, slots: int) -> int:
        """The first of so many free slots in a row; there are as many as makes a multiple of :data:`ROW`."""
        slots += -slots % ROW
        self.used += slots
        if free := self._free.get(slots):
            return free.pop()
        first = self._begun
        self._begun += slots
        if self._begun > (there := self.kept.shape[3]):
            room = max(self._begun, 2 * there)
            self.kept = _grown(self.kept, room)
            self.steps = _grown(self.steps, room)
        return first

    def give_back(self, first: int, slots: int) -> None:
        """Slots that :meth:`take` gave for this number of them."""
        slots += -slots % ROW
        self.used -= slots
        self._free.setdefault(slots, []).append(first)

    def copy(self, source: int, to: int, slots: int) -> None:
        """Copy what so many slots hold to others."""
        self.kept[:, :, :, to : to + slots] = self.kept[:, :, :, source : source + slots]
        self.steps[:, :, :, to : to + slots] = self.steps[:, :, :, source : source + slots]


def _grown(kept: Tensor, slots: int) -> Tensor:
    grown = kept.new_empty(*kept.shape[:3], slots, *kept.shape[4:])
    grown[:, :, :, : kept.shape[3]] = kept
    return grown
