"""Gemma 3's layers in 8-bit integers on a CPU: what a CPU multiplies twice as fast as bfloat16.

Weights get one scale an output, fixed beforehand; activations one a token, taken as it comes. A few inputs of a layer
are much larger than the others for every token, and would leave these few steps of 256: their size is moved into the
weights (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438), that of keys into the queries. Others are large for some
tokens only: inputs are turned by a Hadamard matrix before they are rounded (QuaRot, Ashkboos et al. 2024, arXiv
2404.00456), and the weights turned back. Products, those of attention too, are exact in 32 bits, what is between them
is in float32 (`shared/model/int8_kernels.py`). A token's result does not depend on what else is in the batch.
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

# Share of an input's size that the weights take over. Of 0, 0.3, 0.5, 0.65 and 0.8 this gave Gemma 3 270M's layers on
# the whole the least error, 0.9 to 2.3 % of their output's norm; without it 1.4 to 5.8 %.
_SHARE = 0.65
# The same of a key's size and the queries; of 0.3, 0.5, 0.7 and none this gave the last states the least error.
_SHARE_OF_KEYS = 0.3
_LEAST = 1e-5
FORMAT = 2  # of the weights that are kept; another number where what they mean changes
# Tokens that go through the layers' products together: enough for these to be fast, and few enough to stay in cache.
_ROWS = 512
_ROUND = 16  # products are prepared per shape


def native() -> bool:
    """Whether this CPU has instructions for products of 8-bit integers."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_vnni") or has.get("avx_vnni") or has.get("amx_int8"))


def supports(config: Any) -> bool:
    """Whether these are the layers of a causal model's configuration."""
    return (
        config.model_type == "gemma3_text"
        and config.hidden_activation == "gelu_pytorch_tanh"
        and config.attn_logit_softcapping is None
        and not config.attention_bias
    )


class _Linear(NamedTuple):
    """Weights in 8 bits of layers with the same input."""

    weight: Tensor  # (in, out), int8
    scale: NDArray[np.float32]  # (out,)
    smooth: NDArray[np.float32]  # (in,): the inputs are multiplied by it


class _Layer:
    """One layer's weights. The smoothing of a product's inputs is in the norm before it, where there is one."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str, kind: str) -> None:
        def linear(name: str) -> _Linear:
            weight, scale, smooth = (weights[f"{prefix}{name}.{part}"] for part in _Linear._fields)
            return _Linear(weight, scale.numpy(), smooth.numpy())

        def norm(name: str) -> NDArray[np.float32]:
            found: NDArray[np.float32] = weights[f"{prefix}{name}"].numpy()
            return found

        self.kind = kind
        self.project, self.out = linear("project"), linear("out")
        self.gate_up, self.down = linear("gate_up"), linear("down")
        self.inputs = norm("input_layernorm") * self.project.smooth
        self.queries_keys = _balanced(norm("q_norm"), norm("k_norm"))
        self.after_attention = norm("post_attention_layernorm")
        self.before_mlp = norm("pre_feedforward_layernorm") * self.gate_up.smooth
        self.after_mlp = norm("post_feedforward_layernorm")


def _balanced(queries: NDArray[np.float32], keys: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights of the norms of queries and keys, (2, D), such that keys are of one size in all their places.

    What one gets the other gives, and both places of a pair that positions turn get the same.
    """
    peaks = [np.abs(of).reshape(2, -1).max(axis=0) for of in (queries, keys)]
    of_queries, of_keys = (np.maximum(peak, 0.01 * peak.max()) for peak in peaks)
    moved = np.tile(of_keys**_SHARE_OF_KEYS / of_queries ** (1 - _SHARE_OF_KEYS), 2)
    return np.stack([queries * moved, keys / moved])


class _Workspace(threading.local):
    """What one thread writes into. Memory that comes and goes costs more than the numbers written to it."""

    def __init__(self) -> None:
        self._made: dict[str, Tensor] = {}
        self.cache: Cache | None = None

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of the shape with whatever is in it."""
        size = math.prod(shape)
        made = self._made.get(name)
        if made is None or made.numel() < size:
            made = self._made[name] = torch.zeros(size, dtype=dtype)
        return made[:size].view(shape)


class Int8Body:
    """See the module and :class:`shared.model.body.Body`. For any number of threads."""

    def __init__(self, config: Any, weights: Mapping[str, Tensor]) -> None:
        """``weights``: what :func:`quantised` made of a model with this configuration."""
        from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

        self.config = config
        self.embedding = weights["embedding"]
        kinds = enumerate(config.layer_types)
        self._layers = [_Layer(weights, f"{index}.", kind) for index, kind in kinds]
        self._norm = weights["norm"]
        self._epsilon = np.float32(config.rms_norm_eps)
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._size = config.head_dim
        # As the model has it: rounded to the number format of its weights.
        self._scale = torch.tensor(config.hidden_size**0.5).to(self.embedding.dtype)
        self._rotary = Gemma3RotaryEmbedding(config)
        self._rotations: dict[str, Tensor] = {}
        self._of_thread = _Workspace()

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
        work, total = self._of_thread, len(ids)
        if cache is not None:
            slots = [block.slot for block in blocks]
        else:
            if work.cache is None:
                work.cache = self.cache()
            cache = work.cache
            cache.clear()
            slots = [cache.take(block.end - block.start) for block in blocks]
        where = torch.tensor(positions)
        rotations = {kind: self._rotation(kind, where).numpy() for kind in {layer.kind for layer in self._layers}}
        hidden = (F.embedding(torch.tensor(ids), self.embedding) * self._scale).float().numpy()
        entered = work.tensor("entered", (total + _ROUND, hidden.shape[1]), torch.int8)
        step = work.tensor("step", (total,), torch.float32).numpy()
        look = _Look(self, work, cache, blocks, slots)
        kernels.enter(hidden, self._layers[0].inputs, self._epsilon, entered.numpy(), step)
        for index, layer in enumerate(self._layers):
            self._project(layer, entered, step, rotations[layer.kind], look, index)
            attention, unit = look.attend(index, layer.kind)
            if index + 1 < len(self._layers):
                at, following = look.at, self._layers[index + 1].inputs
            else:
                # What the norm before a next layer would give is not used, and tokens do not see one another any more.
                at, following = look.at[wanted], layer.inputs
                hidden = hidden[wanted]
            self._finish(layer, attention, unit, at, hidden, following, entered, step)
        out = torch.from_numpy(hidden)
        out = out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + float(self._epsilon))
        return out.mul_(self._norm)

    def _rotation(self, kind: str, positions: Tensor) -> Tensor:
        """Cosines and sines, (T, head dim)."""
        table = self._rotations.get(kind)
        last = int(positions.max())
        if table is None or last >= len(table):
            everywhere = torch.arange(max(1024, 2 * last))
            cosine, sine = self._rotary(torch.empty(0), everywhere[None], kind)
            half = self._size // 2
            table = torch.cat((cosine[0, :, :half], sine[0, :, :half]), dim=1).contiguous()
            self._rotations[kind] = table
        return table[positions]

    def _product(self, linear: _Linear, rows: Tensor) -> NDArray[np.int32]:
        """``rows`` (T, in), int8, T a multiple of ``_ROUND``."""
        out = self._of_thread.tensor("product", (len(rows), linear.weight.shape[1]), torch.int32)
        torch._int_mm(rows, linear.weight, out=out)  # noqa: SLF001  # the only way
        found: NDArray[np.int32] = out.numpy()
        return found

    def _project(
        self,
        layer: _Layer,
        entered: Tensor,
        step: NDArray[np.float32],
        rotation: NDArray[np.float32],
        look: _Look,
        index: int,
    ) -> None:
        for rows, padded in _chunks(len(step)):
            kernels.project(
                self._product(layer.project, entered[padded]),
                step[rows],
                layer.project.scale,
                layer.queries_keys,
                self._epsilon,
                rotation[rows],
                look.at[rows],
                self._heads,
                look.queries,
                look.query_step,
                look.kept[index],
                look.kept_step[index],
            )

    def _finish(
        self,
        layer: _Layer,
        attention: NDArray[np.int32],
        unit: NDArray[np.float32],
        at: NDArray[np.int64],
        hidden: NDArray[np.float32],
        following: NDArray[np.float32],
        entered: Tensor,
        step: NDArray[np.float32],
    ) -> None:
        """What comes after attention: into ``hidden``, and for the next layer into ``entered`` and ``step``."""
        work, epsilon = self._of_thread, self._epsilon
        heads = work.tensor("attended", (_ROWS, layer.out.weight.shape[0]), torch.int8)
        middle = work.tensor("middle", (_ROWS, hidden.shape[1]), torch.int8)
        inner = work.tensor("inner", (_ROWS, layer.down.weight.shape[0]), torch.int8)
        one, other = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
        for rows, padded in _chunks(len(at)):
            n, m = rows.stop - rows.start, padded.stop - padded.start
            smooth, groups = layer.out.smooth, self._groups
            kernels.attended(attention, unit, at[rows], self._heads, groups, smooth, heads.numpy(), one[:n])
            product = self._product(layer.out, heads[:m])
            state, scale = hidden[rows], layer.out.scale
            after, before = layer.after_attention, layer.before_mlp
            kernels.add(product, one[:n], scale, after, state, before, epsilon, middle.numpy(), other[:n])
            product = self._product(layer.gate_up, middle[:m])
            kernels.activate(product, other[:n], layer.gate_up.scale, layer.down.smooth, inner.numpy(), one[:n])
            product = self._product(layer.down, inner[:m])
            out, scale = entered[rows].numpy(), layer.down.scale
            kernels.add(product, one[:n], scale, layer.after_mlp, state, following, epsilon, out, step[rows])


class _Look:
    """Attention of one stream. What is the same for all layers is made once: every operation takes microseconds.

    A block's queries are rows, those that share a key one below the other and, since products are prepared per shape,
    as many as make a multiple of ``_ROUND``. ``at``: where a token's are, see :mod:`shared.model.int8_kernels`.
    """

    def __init__(
        self, body: Int8Body, work: _Workspace, cache: Cache, blocks: Sequence[Block], slots: Sequence[int]
    ) -> None:
        config = body.config
        groups, size = config.num_key_value_heads, config.head_dim
        together = config.num_attention_heads // groups
        self._scaling = np.float32(config.query_pre_attn_scalar**-0.5)
        self.kept, self.kept_step = cache.kept.numpy(), cache.steps.numpy()
        self.at = np.empty((blocks[-1].end, 5), np.int64)
        regions: list[tuple[int, ...]] = []
        kept = cache.kept.flatten(0, 2)  # (layers * 2 * KV heads, slots, D)
        scores = masked = row = 0
        places: list[tuple[int, int, int, int]] = []
        for block, slot in zip(blocks, slots, strict=True):
            length, keys = block.end - block.start, block.past + block.end - block.start
            padded, apart = _rounded(together * length), _rounded(keys)
            at = self.at[block.start : block.end]
            at[:, :3] = row, length, padded
            at[:, 3] = range(length)
            at[:, 4] = range(slot + block.past, slot + keys)
            for group in range(groups):
                regions.append((scores, row, together * length, length, keys, apart, slot, group, masked))
                places.append((row, padded, scores, apart))
                row += padded
                scores += padded * apart
            masked += length * keys
        self._regions = np.array(regions, np.int64)
        self._masks = {
            kind: torch.cat([block.sees(windowed=kind == "sliding_attention").flatten() for block in blocks]).numpy()
            for kind in set(config.layer_types)
        }
        queries = work.tensor("queries", (row, size), torch.int8)
        self.queries = queries.numpy()
        self.query_step = work.tensor("query step", (row,), torch.float32).numpy()
        found = work.tensor("attention", (row, size), torch.int32)
        self._found = found.numpy()
        self._unit = work.tensor("attention unit", (row,), torch.float32).numpy()
        products, weights = work.tensor("scores", (scores,), torch.int32), work.tensor("weights", (scores,), torch.int8)
        self._scores, self._weights = products.numpy(), weights.numpy()
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]] = []
        for (first, padded, begin, apart), region in zip(places, regions, strict=True):
            slot, group = region[6], region[7]
            of_group = kept[group::groups, slot : slot + apart]
            end, shape = begin + padded * apart, (padded, apart)
            self._parts.append(
                (
                    queries[first : first + padded],
                    products[begin:end].view(shape),
                    weights[begin:end].view(shape),
                    found[first : first + padded],
                    of_group[::2].transpose(1, 2).unbind(),
                    of_group[1::2].unbind(),
                )
            )

    def attend(self, layer: int, kind: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What attention gives in a layer, (rows, D), and what one unit of a row stands for."""
        for queries, scores, _, _, keys, _ in self._parts:
            torch._int_mm(queries, keys[layer], out=scores)  # noqa: SLF001  # the only way
        kernels.weigh(
            self._scores,
            self._regions,
            self._masks[kind],
            self.query_step,
            self.kept_step[layer],
            self._scaling,
            self._weights,
            self._unit,
        )
        for _, _, weights, found, _, values in self._parts:
            torch._int_mm(weights, values[layer], out=found)  # noqa: SLF001
        return self._found, self._unit


def _rounded(number: int) -> int:
    return number + -number % _ROUND


def _chunks(total: int) -> list[tuple[slice, slice]]:
    """Rows that go together, and the same with some more, so that their number is a multiple of ``_ROUND``."""
    if not total:
        return []
    size = _rounded(-(-total // -(-total // _ROWS)))  # of one length: few rows are slower, each
    ends = [(begin, min(begin + size, total)) for begin in range(0, total, size)]
    return [(slice(begin, end), slice(begin, begin + _rounded(end - begin))) for begin, end in ends]


@torch.inference_mode()
def quantised(packed: Packed, example: Callable[[], Any]) -> dict[str, Tensor]:
    """The weights of an :class:`Int8Body`, of a model that :func:`supports` is true of.

    ``example`` runs it on texts of its trade: these show how large the inputs of each layer get.
    """
    decoder = packed.decoder
    peaks = _peaks(decoder, example)
    found = {"embedding": packed.embedding, "norm": _norm(decoder.norm)}
    for index, layer in enumerate(decoder.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for name, linears in (
            ("project", (attention.q_proj, attention.k_proj, attention.v_proj)),
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
    """A :class:`_Linear`. ``peaks``: the largest absolute value that each input takes, shape (in,)."""
    weight = torch.cat([linear.weight.detach().float() for linear in linears])
    sizes = weight.abs().amax(0).clamp_(min=_LEAST)
    moved = peaks.float().clamp(min=_LEAST) ** _SHARE / sizes ** (1 - _SHARE)
    weight = _spread_back(weight * moved)
    scale = weight.abs().amax(1).clamp_(min=_LEAST) / 127
    rounded = (weight / scale[:, None]).round().to(torch.int8)
    return {"weight": rounded.t().contiguous(), "scale": scale, "smooth": 1 / moved}


def _spread_back(weight: Tensor) -> Tensor:
    """Weights (out, in) of inputs that :mod:`shared.model.int8_kernels` spreads."""
    outputs, inputs = weight.shape
    columns = kernels.columns(inputs)
    matrix = torch.ones(1, 1)
    while len(matrix) * columns < inputs:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return (matrix / len(matrix) @ weight.view(outputs, -1, columns)).view(outputs, inputs)


def _norm(norm: Any) -> Tensor:
    """What a norm multiplies by."""
    weight: Tensor = 1 + norm.weight.detach().float()
    return weight


def _peaks(module: nn.Module, example: Callable[[], Any]) -> dict[nn.Module, Tensor]:
    """The largest absolute value of each input of each linear layer below a module while the example runs."""
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    peaks: dict[nn.Module, Tensor] = {layer: torch.zeros(layer.in_features) for layer in linears}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).abs().amax(0).float()
        peaks[layer] = torch.maximum(peaks[layer], seen)

    hooks = [layer.register_forward_pre_hook(look) for layer in linears]
    try:
        example()
    finally:
        for hook in hooks:
            hook.remove()
    return peaks
