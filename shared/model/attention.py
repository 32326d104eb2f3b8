"""Packed attention: many segments and lines in one stream of tokens, without padding.

The model's linear layers see one sequence of T tokens; attention is computed block by block, where a block is a set of
tokens that may attend to one another (a segment's prefix with its lines, or lines with a cached prefix). The lines of a
segment do not see each other, so they can share its prefix. Any ``transformers`` causal model that supports attention
interfaces can be packed. Positions restart at zero in every segment, so the result for a line is the same as for its
prefix and the line alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from shared.model.cache import Cache

NAME = "biobracket_packed"


@dataclass(slots=True)
class Block:
    """Tokens ``start:end`` of the stream, which attend to one another as ``mask`` allows.

    ``mask``: bool, shape (end - start, past + end - start), true where a token may attend; ``window``: the same for
    sliding-window layers, None where the window makes no difference. With a cache, ``slot`` is the slot of the first of
    ``past`` earlier tokens; the block's own go into the slots that follow them.
    """

    start: int
    end: int
    mask: Tensor
    window: Tensor | None = None
    past: int = 0
    slot: int = 0
    _biases: dict[bool, Tensor] = field(default_factory=dict, init=False)

    def sees(self, *, windowed: bool) -> Tensor:
        """The mask of a layer, with a sliding window or without."""
        return self.window if windowed and self.window is not None else self.mask

    def bias(self, *, windowed: bool, group: int, dtype: torch.dtype) -> Tensor:
        """The mask as an additive bias, zero or minus infinity, repeated for each of ``group`` query heads.

        Computed once for all layers.
        """
        windowed = windowed and self.window is not None
        if windowed not in self._biases:
            mask = self.sees(windowed=windowed)
            bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))
            self._biases[windowed] = bias.repeat(group, 1)
        return self._biases[windowed]


class Layout:
    """The blocks of a stream, as one object: a compiled model then does not depend on their number."""

    __slots__ = ("blocks", "cache")

    def __init__(self, blocks: Sequence[Block], cache: Cache | None = None) -> None:
        self.blocks = blocks
        self.cache = cache


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """An attention function for ``transformers``: query (1, heads, T, dim) to output (1, T, heads, dim)."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    heads, kv_heads = query.shape[1], key.shape[1]
    group = heads // kv_heads
    outputs = []
    for block in layout.blocks:
        length = block.end - block.start
        q = query[0, :, block.start : block.end]
        k = key[0, :, block.start : block.end]
        v = value[0, :, block.start : block.end]
        if layout.cache is not None:
            cached = layout.cache.kv[layer, :, :, block.slot : block.slot + block.past + length]
            cached[0, :, block.past :] = k
            cached[1, :, block.past :] = v
            k, v = cached
        # The query heads that share a key head are concatenated: one product instead of `group` copies of k and v.
        q = q.reshape(kv_heads, group * length, -1)
        bias = block.bias(windowed=sliding_window is not None, group=group, dtype=q.dtype)
        if q.requires_grad and q.device.type == "cpu":
            # On a CPU the backward pass of the fused kernel takes three times as long as that of separate products.
            scores = torch.baddbmm(bias[None], q, k.transpose(1, 2), alpha=scaling or q.shape[-1] ** -0.5)
            out = torch.bmm(torch.softmax(scores, dim=-1), v)
        else:
            out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias, scale=scaling)[0]
        outputs.append(out.reshape(heads, length, -1).transpose(0, 1))
    return torch.cat(outputs)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


# Blocks differ in size from batch to batch, so torch.compile must keep this function out of its graphs.
AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
AttentionMaskInterface.register(NAME, _no_mask)


def use_packed_attention(model: Any) -> Any:
    """Switches a loaded model to packed attention, in place."""
    model.set_attn_implementation(NAME)
    return model


def run(model: Any, ids: Tensor, positions: Tensor, layout: Sequence[Block], cache: Cache | None = None) -> Tensor:
    """Hidden states after the final norm, shape (T, hidden), of a packed stream of ids, shape (T,)."""
    out = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, layout=Layout(layout, cache))
    hidden: Tensor = out.last_hidden_state[0]
    return hidden
