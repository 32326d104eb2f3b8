"""Packed attention: many segments and lines in one stream of tokens, with no padding between them.

The linear layers of the model see one sequence of T tokens; attention is computed block by block, a block being the
tokens that may see one another (a segment's prefix with its lines, or lines with a remembered prefix). The lines of one
segment do not see each other: that is what lets them share the prefix. Any ``transformers`` causal model that supports
attention interfaces can be packed; positions restart at zero in every segment, so a line is computed exactly as if its
prefix and it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "biobracket_packed"

ROW = 64  # slots: rows of a few lengths only can be used again
_ROUND = 16  # streams are padded to a multiple, long ones to one of 64: matrix kernels are prepared per shape


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


@dataclass(slots=True)
class Block:
    """Tokens ``start:end`` of the stream, which see themselves through ``mask``.

    ``mask``: bool, shape (end - start, past + end - start), true where a token may look; ``window``: the same for
    sliding layers, none where the window does not bite. With a cache, ``slot`` is the first of ``past`` tokens that
    stand before the block's own, and these go into the slots after them.
    """

    start: int
    end: int
    mask: Tensor
    window: Tensor | None = None
    past: int = 0
    slot: int = 0
    _biases: dict[bool, Tensor] = field(default_factory=dict, init=False)

    def sees(self, *, windowed: bool) -> Tensor:
        """The mask of a layer that slides or does not."""
        return self.window if windowed and self.window is not None else self.mask

    def bias(self, *, windowed: bool, group: int, dtype: torch.dtype) -> Tensor:
        """What is added to attention scores, zero or minus infinity: a mask for each of ``group`` heads, one below the
        other. Made once for all layers.
        """
        windowed = windowed and self.window is not None
        if windowed not in self._biases:
            mask = self.sees(windowed=windowed)
            bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))
            self._biases[windowed] = bias.repeat(group, 1)
        return self._biases[windowed]


class Layout:
    """The blocks of a stream. An object of its own, so that a compiled model does not depend on their number."""

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
    """Attention interface of ``transformers``: query (1, heads, T, dim) to output (1, T, heads, dim)."""
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
            kept = layout.cache.kept[layer, :, :, block.slot : block.slot + block.past + length]
            kept[0, :, block.past :] = k
            kept[1, :, block.past :] = v
            k, v = kept
        # The query heads of one key head are laid one after the other: one product instead of `group` copies of k, v.
        q = q.reshape(kv_heads, group * length, -1)
        bias = block.bias(windowed=sliding_window is not None, group=group, dtype=q.dtype)
        if q.requires_grad and q.device.type == "cpu":
            # On a CPU the backward pass of the fused kernel takes three times as long as that of plain products.
            scores = torch.baddbmm(bias[None], q, k.transpose(1, 2), alpha=scaling or q.shape[-1] ** -0.5)
            out = torch.bmm(torch.softmax(scores, dim=-1), v)
        else:
            out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias, scale=scaling)[0]
        outputs.append(out.reshape(heads, length, -1).transpose(0, 1))
    return torch.cat(outputs)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


# Blocks differ in size from batch to batch: a compiled model keeps this function out of its graphs.
AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))
AttentionMaskInterface.register(NAME, _no_mask)


def use_packed_attention(model: Any) -> Any:
    """Switch a loaded model to packed attention, in place."""
    model.set_attn_implementation(NAME)
    return model


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


def run(model: Any, ids: Tensor, positions: Tensor, layout: Sequence[Block], cache: Cache | None = None) -> Tensor:
    """Hidden states after the final norm, shape (T, hidden), of a packed stream of ids, shape (T,)."""
    out = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, layout=Layout(layout, cache))
    hidden: Tensor = out.last_hidden_state[0]
    return hidden


class Body(Protocol):
    """A causal model for inference: its layers, to be run over a stream, and its output embedding.

    ``embedding``: shape (vocabulary, hidden); ``config``: of ``transformers``.
    """

    config: Any
    embedding: Tensor

    def cache(self) -> Cache:
        """An empty one."""

    def __call__(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        blocks: Sequence[Block],
        wanted: Sequence[int],
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm of the ``wanted`` tokens, shape (wanted, hidden)."""


class Packed:
    """A ``transformers`` causal model with packed attention, as it is."""

    def __init__(self, model: Any) -> None:
        self.decoder = model.get_decoder()
        self.config = model.config
        self.embedding = model.get_output_embeddings().weight
        self._device = model.device

    def cache(self) -> Cache:
        """See :class:`Body`."""
        return Cache(self.config, self.decoder.dtype, self._device)

    def __call__(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        blocks: Sequence[Block],
        wanted: Sequence[int],
        cache: Cache | None = None,
    ) -> Tensor:
        """See :class:`Body`."""
        n = len(ids)
        if pad := -n % (_ROUND if n < 512 else 64):
            ids = [*ids, *[0] * pad]
            positions = [*positions, *range(pad)]
            slot = cache.take(pad) if cache is not None else 0
            blocks = [*blocks, Block(n, n + pad, causal(pad, device=self._device), slot=slot)]
            if cache is not None:
                cache.give_back(slot, pad)
        stream = torch.tensor((ids, positions), device=self._device)
        return run(self.decoder, stream[0], stream[1], blocks, cache)[
            torch.tensor(wanted, dtype=torch.long, device=self._device)
        ]
