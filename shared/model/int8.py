"""Gemma 3 in int8 (W8A8) on a CPU, which multiplies int8 twice as fast as its fastest floats.

Weights have one static scale per output channel, activations one dynamic scale per token. Some input channels are much
larger than the rest for every token and would leave those few of the 256 levels: their magnitude is moved into the
weights (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438), that of keys into the queries. Others are outliers for some
tokens only: inputs are rotated by a Hadamard matrix before they are quantised (QuaRot, Ashkboos et al. 2024, arXiv
2404.00456), and the weights to match. Matrix products, attention's included, accumulate exactly in int32; everything
between them is float32 (:mod:`shared.model.int8_kernels`). A token's result does not depend on the rest of the batch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.model import int8_kernels as kernels
from shared.model.attention import Block
from shared.model.body import Packed
from shared.model.cache import Cache
from shared.model.products import MOST, TORCH, Int8

# SmoothQuant's alpha, the share of an input channel's magnitude that moves into the weights. Of 0, 0.3, 0.5, 0.65 and
# 0.8 this gave the layers of Gemma 3 270M the least error overall, 0.9 to 2.3 % of their output's norm; without
# smoothing it is 1.4 to 5.8 %.
_ALPHA = 0.65
# The same for keys and queries; of 0.3, 0.5, 0.7 and none this gave the final hidden states the least error.
_KEY_ALPHA = 0.3
_EPSILON = 1e-5
FORMAT = 4  # of the cached weights; raise it when their meaning changes
# Tokens per matrix product of a layer: enough to be fast, few enough that the results stay in the CPU's cache.
_ROWS = 512
_MULTIPLE = 16  # rows of a product are padded to a multiple: oneDNN prepares its kernels per shape


def supports(config: Any) -> bool:
    """Whether a causal model of this configuration can be run in int8."""
    return (
        config.model_type == "gemma3_text"
        and config.hidden_activation == "gelu_pytorch_tanh"
        and config.attn_logit_softcapping is None
        and not config.attention_bias
    )


class _Linear(NamedTuple):
    """Quantised weights of one or more linear layers with the same input."""

    weight: Any  # (in, out), int8, packed for the products of this machine
    scale: NDArray[np.float32]  # (out,)
    smooth: NDArray[np.float32]  # (in,): factors that the inputs are multiplied by


class _Layer:
    """One layer's weights. Smoothing factors are folded into the norm before a product, where there is one."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, kind: str, product: Int8) -> None:
        def linear(name: str) -> _Linear:
            weight, scale, smooth = (weights[f"{prefix}{name}.{part}"] for part in _Linear._fields)
            return _Linear(product.packed(weight), scale.numpy(), smooth.numpy())

        def norm(name: str) -> NDArray[np.float32]:
            found: NDArray[np.float32] = weights[f"{prefix}{name}"].numpy()
            return found

        self.kind = kind
        self.qkv, self.out = linear("qkv"), linear("out")
        self.gate_up, self.down = linear("gate_up"), linear("down")
        self.inputs = norm("input_layernorm") * self.qkv.smooth
        self.queries_keys = _balanced(norm("q_norm"), norm("k_norm"))
        self.after_attention = norm("post_attention_layernorm")
        self.before_mlp = norm("pre_feedforward_layernorm") * self.gate_up.smooth
        self.after_mlp = norm("post_feedforward_layernorm")


def _balanced(queries: NDArray[np.float32], keys: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights of the query and key norms, (2, D), with magnitude moved from keys to queries, channel by channel.

    Their dot product is unchanged, as is RoPE: both channels of a pair it rotates get the same factor.
    """
    peaks = [np.abs(weight).reshape(2, -1).max(axis=0) for weight in (queries, keys)]
    query_peaks, key_peaks = (np.maximum(peak, 0.01 * peak.max()) for peak in peaks)
    factors = np.tile(key_peaks**_KEY_ALPHA / query_peaks ** (1 - _KEY_ALPHA), 2)
    return np.stack([queries * factors, keys / factors])


class _Workspace(threading.local):
    """Scratch memory of one thread, reused: allocating it costs more than writing to it."""

    def __init__(self) -> None:
        self._made: dict[str, Tensor] = {}
        self.cache: Cache | None = None

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of a shape, not initialised."""
        size = math.prod(shape)
        made = self._made.get(name)
        if made is None or made.numel() < size:
            made = self._made[name] = torch.zeros(size, dtype=dtype)
        return made[:size].view(shape)


class Int8Body:
    """A quantised model, see the module and :class:`shared.model.body.Body`. Thread-safe."""

    def __init__(self, config: Any, weights: Mapping[str, Tensor], product: Int8 = TORCH) -> None:
        """``weights``: what :func:`quantised` made from a model of this configuration; ``product``: how to multiply."""
        from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

        self.config, self.product = config, product
        self.embedding = weights["embedding"]
        kinds = enumerate(config.layer_types)
        self._layers = [_Layer(weights, f"{index}.", kind, product) for index, kind in kinds]
        self._norm = weights["norm"]
        self._epsilon = np.float32(config.rms_norm_eps)
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._size = config.head_dim
        # The embedding scale as Gemma has it: rounded to the precision of the weights.
        self._embedding_scale = torch.tensor(config.hidden_size**0.5).to(self.embedding.dtype)
        self._rotary = Gemma3RotaryEmbedding(config)
        self._rotations: dict[str, Tensor] = {}
        self._workspace = _Workspace()

    def cache(self) -> Cache:
        """See :class:`shared.model.body.Body`."""
        return Cache(self.config, torch.int8)

    def __call__(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        blocks: Sequence[Block],
        wanted: Sequence[int],
        cache: Cache | None = None,
    ) -> Tensor:
        """See :class:`shared.model.body.Body`."""
        work, total = self._workspace, len(ids)
        if cache is not None:
            slots = [block.slot for block in blocks]
        else:
            if work.cache is None:
                work.cache = self.cache()
            cache = work.cache
            cache.clear()
            slots = [cache.take(block.end - block.start) for block in blocks]
        position_ids = torch.tensor(positions)
        rotations = {
            kind: self._rotation(kind, position_ids).numpy() for kind in {layer.kind for layer in self._layers}
        }
        hidden = (F.embedding(torch.tensor(ids), self.embedding) * self._embedding_scale).float().numpy()
        inputs = work.tensor("inputs", (total + _MULTIPLE, hidden.shape[1]), torch.int8)
        scale = work.tensor("scale", (total,), torch.float32).numpy()
        attention = _Attention(self, work, cache, blocks, slots)
        kernels.rms_norm_quantise(hidden, self._layers[0].inputs, self._epsilon, inputs.numpy(), scale)
        for index, layer in enumerate(self._layers):
            self._project(layer, inputs, scale, rotations[layer.kind], attention, index)
            attended, attended_scale = attention.attend(index, layer.kind)
            if index + 1 < len(self._layers):
                places, next_norm = attention.places, self._layers[index + 1].inputs
            else:
                # After the last attention only the wanted tokens matter. No layer follows: the next norm is unused.
                places, next_norm = attention.places[wanted], layer.inputs
                hidden = hidden[wanted]
            self._finish(layer, attended, attended_scale, places, hidden, next_norm, inputs, scale)
        out = torch.from_numpy(hidden)
        out = out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + float(self._epsilon))
        return out.mul_(self._norm)

    def _rotation(self, kind: str, positions: Tensor) -> Tensor:
        """RoPE's cosines, then sines, at these positions: (T, head dim)."""
        table = self._rotations.get(kind)
        last = int(positions.max())
        if table is None or last >= len(table):
            all_positions = torch.arange(max(1024, 2 * last))
            cosine, sine = self._rotary(torch.empty(0), all_positions[None], kind)
            half = self._size // 2
            table = torch.cat((cosine[0, :, :half], sine[0, :, :half]), dim=1).contiguous()
            self._rotations[kind] = table
        return table[positions]

    def _product(self, linear: _Linear, rows: Tensor) -> NDArray[Any]:
        """``rows`` (T, in), int8, T a multiple of ``_MULTIPLE``, to (T, out), valid until the next product."""
        out = self._workspace.tensor("product", (len(rows), len(linear.scale)), self.product.dtype)
        found: NDArray[Any] = self.product.linear(rows, linear.weight, out).numpy()
        return found

    def _project(
        self,
        layer: _Layer,
        inputs: Tensor,
        scale: NDArray[np.float32],
        rotation: NDArray[np.float32],
        attention: _Attention,
        index: int,
    ) -> None:
        """Queries, keys and values of a layer, into ``attention``."""
        for rows, padded in _chunks(len(scale)):
            kernels.qkv_norm_rope_quantise(
                self._product(layer.qkv, inputs[padded]),
                scale[rows],
                layer.qkv.scale,
                layer.queries_keys,
                self._epsilon,
                rotation[rows],
                attention.places[rows],
                self._heads,
                attention.queries,
                attention.query_scale,
                attention.kv[index],
                attention.kv_scale[index],
            )

    def _finish(
        self,
        layer: _Layer,
        attended: NDArray[np.int32],
        attended_scale: NDArray[np.float32],
        places: NDArray[np.int64],
        hidden: NDArray[np.float32],
        next_norm: NDArray[np.float32],
        inputs: Tensor,
        scale: NDArray[np.float32],
    ) -> None:
        """The rest of a layer after attention: updates ``hidden``, and writes the next layer's inputs and scales."""
        work, epsilon = self._workspace, self._epsilon
        heads = work.tensor("heads", (_ROWS, len(layer.out.smooth)), torch.int8)
        middle = work.tensor("middle", (_ROWS, hidden.shape[1]), torch.int8)
        inner = work.tensor("inner", (_ROWS, len(layer.down.smooth)), torch.int8)
        one, other = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
        for rows, padded in _chunks(len(places)):
            n, m = rows.stop - rows.start, padded.stop - padded.start
            state = hidden[rows]
            kernels.attention_quantise(
                attended,
                attended_scale,
                places[rows],
                self._heads,
                self._groups,
                layer.out.smooth,
                heads.numpy(),
                one[:n],
            )
            kernels.residual_norm_quantise(
                self._product(layer.out, heads[:m]),
                one[:n],
                layer.out.scale,
                layer.after_attention,
                state,
                layer.before_mlp,
                epsilon,
                middle.numpy(),
                other[:n],
            )
            product = self._product(layer.gate_up, middle[:m])
            kernels.gelu_multiply_quantise(
                product, other[:n], layer.gate_up.scale, layer.down.smooth, inner.numpy(), one[:n]
            )
            kernels.residual_norm_quantise(
                self._product(layer.down, inner[:m]),
                one[:n],
                layer.down.scale,
                layer.after_mlp,
                state,
                next_norm,
                epsilon,
                inputs[rows].numpy(),
                scale[rows],
            )


class _Attention:
    """Attention of one stream. What all layers share is prepared once: each operation costs microseconds.

    The queries of a block are rows of one matrix, those of the heads that share a key head together, padded to a
    multiple of ``_MULTIPLE``. ``places``: where a token's queries and cache slot are, see
    :func:`shared.model.int8_kernels.qkv_norm_rope_quantise`.
    """

    def __init__(
        self, body: Int8Body, work: _Workspace, cache: Cache, blocks: Sequence[Block], slots: Sequence[int]
    ) -> None:
        config, dtype, self._multiply = body.config, body.product.dtype, body.product.multiply
        groups, size = config.num_key_value_heads, config.head_dim
        together = config.num_attention_heads // groups
        self._scaling = np.float32(config.query_pre_attn_scalar**-0.5)
        self.kv, self.kv_scale = cache.kv.numpy(), cache.scales.numpy()
        self.places = np.empty((blocks[-1].end, 5), np.int64)
        regions: list[tuple[int, ...]] = []
        kv = cache.kv.flatten(0, 2)  # (layers * 2 * KV heads, slots, D)
        scores = masked = row = 0
        sizes: list[tuple[int, int, int, int]] = []
        for block, slot in zip(blocks, slots, strict=True):
            length, keys = block.end - block.start, block.past + block.end - block.start
            padded, stride = _rounded(together * length), _rounded(keys)
            places = self.places[block.start : block.end]
            places[:, :3] = row, length, padded
            places[:, 3] = range(length)
            places[:, 4] = range(slot + block.past, slot + keys)
            for group in range(groups):
                regions.append((scores, row, together * length, length, keys, stride, slot, group, masked))
                sizes.append((row, padded, scores, stride))
                row += padded
                scores += padded * stride
            masked += length * keys
        self._regions = np.array(regions, np.int64)
        self._masks = {
            kind: torch.cat([block.sees(windowed=kind == "sliding_attention").flatten() for block in blocks]).numpy()
            for kind in set(config.layer_types)
        }
        queries = work.tensor("queries", (row, size), torch.int8)
        self.queries = queries.numpy()
        self.query_scale = work.tensor("query scale", (row,), torch.float32).numpy()
        attended = work.tensor("attended", (row, size), dtype)
        self._attended = attended.numpy()
        self._attended_scale = work.tensor("attended scale", (row,), torch.float32).numpy()
        products, weights = work.tensor("scores", (scores,), dtype), work.tensor("weights", (scores,), torch.int8)
        self._scores, self._weights = products.numpy(), weights.numpy()
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]] = []
        for (first, padded, begin, stride), region in zip(sizes, regions, strict=True):
            slot, group = region[6], region[7]
            group_kv = kv[group::groups, slot : slot + stride]
            end, shape = begin + padded * stride, (padded, stride)
            self._parts.append(
                (
                    queries[first : first + padded],
                    products[begin:end].view(shape),
                    weights[begin:end].view(shape),
                    attended[first : first + padded],
                    group_kv[::2].transpose(1, 2).unbind(),
                    group_kv[1::2].unbind(),
                )
            )

    def attend(self, layer: int, kind: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Attention's output in a layer, integers of shape (rows, D), and the scale of each row."""
        for queries, scores, _, _, keys, _ in self._parts:
            self._multiply(queries, keys[layer], scores)
        kernels.softmax_quantise(
            self._scores,
            self._regions,
            self._masks[kind],
            self.query_scale,
            self.kv_scale[layer],
            self._scaling,
            self._weights,
            self._attended_scale,
        )
        for _, _, weights, attended, _, values in self._parts:
            self._multiply(weights, values[layer], attended)
        return self._attended, self._attended_scale


def _rounded(number: int) -> int:
    return number + -number % _MULTIPLE


def _chunks(total: int) -> list[tuple[slice, slice]]:
    """The rows of each matrix product, and the same padded to a multiple of ``_MULTIPLE``."""
    if not total:
        return []
    size = _rounded(-(-total // -(-total // _ROWS)))  # of equal length: a short product costs more per row
    ends = [(begin, min(begin + size, total)) for begin in range(0, total, size)]
    return [(slice(begin, end), slice(begin, begin + _rounded(end - begin))) for begin, end in ends]


@torch.inference_mode()
def quantised(packed: Packed, example: Callable[[], Any]) -> dict[str, Tensor]:
    """The weights of an :class:`Int8Body` from a model whose configuration :func:`supports` accepts.

    ``example`` runs the model on typical text, to calibrate: it shows how large the inputs of each layer get.
    """
    decoder = packed.decoder
    peaks = _peaks(decoder, example)
    found = {"embedding": packed.embedding, "norm": _norm(decoder.norm)}
    for index, layer in enumerate(decoder.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for name, linears in (
            ("qkv", (attention.q_proj, attention.k_proj, attention.v_proj)),
            ("out", (attention.o_proj,)),
            ("gate_up", (mlp.gate_proj, mlp.up_proj)),
            ("down", (mlp.down_proj,)),
        ):
            made = _linear(linears, peaks[linears[0]])
            found |= {f"{index}.{name}.{part}": tensor for part, tensor in made.items()}
        found |= {f"{index}.{name}": _norm(child) for name, child in layer.named_children() if name.endswith("norm")}
        found |= {f"{index}.{name}": _norm(getattr(attention, name)) for name in ("q_norm", "k_norm")}
    return found


def _linear(linears: Sequence[nn.Linear], peaks: Tensor) -> dict[str, Tensor]:
    """The parts of a :class:`_Linear`. ``peaks`` (in,): the largest absolute value of each input channel."""
    weight = torch.cat([linear.weight.detach().float() for linear in linears])
    sizes = weight.abs().amax(0).clamp_(min=_EPSILON)
    factors = peaks.float().clamp(min=_EPSILON) ** _ALPHA / sizes ** (1 - _ALPHA)
    weight = _rotated(weight * factors)
    # Neighbours together within 7 bits, see MOST, with room for rounding: half a bit less than each for itself.
    scale = weight.abs().unflatten(1, (-1, 2)).sum(2).amax(1).clamp_(min=_EPSILON) / (MOST - 1)
    rounded = (weight / scale[:, None]).round().to(torch.int8)
    return {"weight": rounded.t().contiguous(), "scale": scale, "smooth": 1 / factors}


def _rotated(weight: Tensor) -> Tensor:
    """Weights (out, in) for inputs that :mod:`shared.model.int8_kernels` rotates by a Hadamard matrix."""
    outputs, inputs = weight.shape
    columns = kernels.hadamard_columns(inputs)
    matrix = torch.ones(1, 1)
    while len(matrix) * columns < inputs:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return (matrix / len(matrix) @ weight.view(outputs, -1, columns)).view(outputs, inputs)


def _norm(norm: Any) -> Tensor:
    """The factors of an RMSNorm: Gemma stores them minus one."""
    weight: Tensor = 1 + norm.weight.detach().float()
    return weight


def _peaks(module: nn.Module, example: Callable[[], Any]) -> dict[nn.Module, Tensor]:
    """The largest absolute value of each input channel of every linear layer while the example runs."""
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    peaks: dict[nn.Module, Tensor] = {layer: torch.zeros(layer.in_features) for layer in linears}

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).abs().amax(0).float()
        peaks[layer] = torch.maximum(peaks[layer], seen)

    hooks = [layer.register_forward_pre_hook(observe) for layer in linears]
    try:
        example()
    finally:
        for hook in hooks:
            hook.remove()
    return peaks
