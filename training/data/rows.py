"""Batches of whole sequences, padded to rows of nearly equal length.

Every sequence is plainly causal: padding at the end needs no mask, and one fused attention kernel handles the whole
batch. The rows of a batch have nearly the same length, since they are chosen from a pool of many batches' items.
"""

from __future__ import annotations

import multiprocessing
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from training.data.labelled import Item, ItemSource, Variation

NAME = "biobracket_rows"
POOL = 16  # batches in a pool, from which rows of similar length are grouped

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arrays:
    """A batch before it is on a device. ``ids``: (B, L); the rest counts tokens of the flattened rows.

    ``at``: (N,) token before each decision, ``right``: (N,) index of the right option; ``options``: (M,) their tokens,
    ``row`` and ``column``: (M,) decision and place of each. ``marked``: (K, 4) states of mentions, ``types``: (K,),
    ``truth``: (K,).
    """

    ids: Ints
    at: Ints
    right: Ints
    options: Ints
    row: Ints
    column: Ints
    marked: Ints
    types: Ints
    truth: Ints
    tokens: int


@dataclass(frozen=True, slots=True)
class Rows:
    """:class:`Arrays` as tensors on a device; ``width``: the most options of any decision."""

    ids: Tensor
    at: Tensor
    right: Tensor
    options: Tensor
    row: Tensor
    column: Tensor
    marked: Tensor
    types: Tensor
    truth: Tensor
    tokens: int
    width: int


_IGNORED = -100  # as ``right``: no loss
_LENGTHS = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 960)  # of rows of few shapes
_NEVER = -1e9  # and not infinity, of which a decision without options would have no gradient
_WIDTH = 32  # options of a decision in batches of few shapes, a bound


def fitting(length: int, few: bool) -> int:
    """How long the rows are in which the longest item has this length. ``few``: one of few lengths."""
    if not few:
        return length
    return next((known for known in _LENGTHS if known >= length), -(-length // 256) * 256)


def padded(batch: Arrays, size: int) -> Arrays:
    """The batch in one of few shapes, with the same loss: empty rows, decisions that do not count, their options.

    ``size``: tokens per batch, including padding. Raises ValueError if a decision has more options than fit.
    """
    if batch.column.max(initial=0) >= _WIDTH:
        raise ValueError(f"a decision has more than {_WIDTH} options; ask for fewer types, or set graphs to false")
    rows, length = batch.ids.shape
    # The bounds per token are a little above what is met; what exceeds them gets twice as much.
    decisions = _multiple(len(batch.at) + 1, size // 2)
    options = _multiple(len(batch.options), size * 5 // 4)
    at, right, row = (
        _filled(v, n, x)
        for v, n, x in (
            (batch.at, decisions, 0),
            (batch.right, decisions, _IGNORED),
            (batch.row, options, decisions - 1),
        )
    )
    return replace(
        batch,
        ids=np.concatenate([batch.ids, np.zeros((max(1, size // length) - rows, length), dtype=np.int64)]),
        at=at,
        right=right,
        row=row,
        options=_filled(batch.options, options, 0),
        column=_filled(batch.column, options, 0),
        marked=batch.marked[:0],
        types=batch.types[:0],
        truth=batch.truth[:0],
    )


def _multiple(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _filled(values: Ints, length: int, value: int) -> Ints:
    return np.concatenate([values, np.full(length - len(values), value, dtype=np.int64)])


def arrays(items: Sequence[Item], known: dict[str, int], *, few: bool = False) -> Arrays:
    """A batch of items; ``known``: the index of each type key; ``few``: with rows of few lengths."""
    length = fitting(max(map(len, items)), few)
    ids = np.zeros((len(items), length), dtype=np.int64)
    at: list[int] = []
    right: list[int] = []
    options: list[int] = []
    row: list[int] = []
    column: list[int] = []
    marked: list[list[int]] = []
    types: list[int] = []
    truth: list[int] = []
    for i, item in enumerate(items):
        ids[i, : len(item)] = item.ids
        begin = i * length
        for before, first, taken in item.decisions:
            row += [len(at)] * len(first)
            column += range(len(first))
            options += first
            at.append(begin + before)
            right.append(taken)
        for one in item.marked:
            marked.append([begin + token for token in one.at])
            types.append(known[one.type])
            truth.append(one.right)
    return Arrays(
        ids=ids,
        at=_integers(at),
        right=_integers(right),
        options=_integers(options),
        row=_integers(row),
        column=_integers(column),
        marked=_integers(marked).reshape(-1, 4),
        types=_integers(types),
        truth=_integers(truth),
        tokens=sum(map(len, items)),
    )


def _integers(values: Sequence[Any]) -> Ints:
    return np.array(values, dtype=np.int64)


def on_device(batch: Arrays, device: torch.device, *, few: bool = False) -> Rows:
    """The batch as tensors; ``few``: of few widths."""

    def there(values: Ints) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    return Rows(
        ids=there(batch.ids),
        at=there(batch.at),
        right=there(batch.right),
        options=there(batch.options),
        row=there(batch.row),
        column=there(batch.column),
        marked=there(batch.marked),
        types=there(batch.types),
        truth=there(batch.truth),
        tokens=batch.tokens,
        width=_WIDTH if few else int(batch.column.max(initial=0)) + 1,
    )


def grouped(items: Sequence[Item], size: int, draw: random.Random, *, few: bool = False) -> list[list[Item]]:
    """Groups of nearly equal length, each of at most ``size`` tokens including padding, in any order.

    Items longer than that are left out. ``few``: padded to few lengths.
    """
    groups: list[list[Item]] = []
    for item in sorted(
        (i for i in items if fitting(len(i), few) <= size), key=lambda i: (len(i) + draw.randint(0, 8), draw.random())
    ):
        if not groups or (len(groups[-1]) + 1) * fitting(max(len(item), *map(len, groups[-1])), few) > size:
            groups.append([])
        groups[-1].append(item)
    draw.shuffle(groups)
    return groups


class Builder:
    """Makes batches from drawn source texts, which are given by index."""

    def __init__(
        self,
        sources: Sequence[Any],
        texts: ItemSource[Any],
        vary: Variation,
        size: int,
        known: dict[str, int],
        *,
        few: bool = False,
    ) -> None:
        """``size``: tokens per batch, with padding; ``known``: the index of each type key; ``few``: of few shapes."""
        self._sources, self._texts, self._vary, self._size, self._known = sources, texts, vary, size, known
        self._few = few

    def build(self, places: Sequence[int], seed: int) -> list[Arrays]:
        """The batches of a pool of source texts; a function of the seed."""
        draw = random.Random(seed)  # noqa: S311 - an order, not a secret
        items = [item for place in places for item in self._texts.items(self._sources[place], draw, self._vary)]
        groups = grouped(items, self._size, draw, few=self._few)
        found = [arrays(group, self._known, few=self._few) for group in groups]
        return [padded(one, self._size) for one in found] if self._few else found

    def batches(self, places: Iterable[int], seed: int, workers: int) -> Iterator[Arrays]:
        """A stream of batches from a stream of indices; ``workers``: processes that make them, 0 for none."""
        pools = self._pools(places)
        if not workers:
            for number, pool in enumerate(pools):
                yield from self.build(pool, seed + number)
            return
        global _builder
        _builder = self  # inherited by forked processes, so that it need not be sent to them
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as executor:
            under_way: deque[Future[list[Arrays]]] = deque()
            for number, pool in enumerate(pools):
                under_way.append(executor.submit(_build, pool, seed + number))
                if len(under_way) > 2 * workers:
                    yield from under_way.popleft().result()
            for future in under_way:
                yield from future.result()

    def _pools(self, places: Iterable[int]) -> Iterator[list[int]]:
        pool: list[int] = []
        used = 0
        for place in places:
            pool.append(int(place))
            used += len(self._sources[place])
            if used >= POOL * self._size:
                yield pool
                pool, used = [], 0
        if pool:
            yield pool


_builder: Builder | None = None


def _build(places: Sequence[int], seed: int) -> list[Arrays]:
    if _builder is None:
        raise RuntimeError("not started by fork")
    return _builder.build(places, seed)


# Attention.


@cache
def _windowed(length: int, window: int, device: torch.device) -> Tensor:
    at = torch.arange(length, device=device)
    behind = at[:, None] - at[None, :]
    return (behind >= 0) & (behind < window)


@cache
def _bias(length: int, window: int | None, group: int, dtype: torch.dtype) -> Tensor:
    mask = _windowed(length, window or length, torch.device("cpu"))
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf")).repeat(group, 1)


def rows_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention interface of ``transformers``: query (B, heads, L, dim) to output (B, L, heads, dim)."""
    rows, heads, length, size = query.shape
    kv_heads = key.shape[1]
    window = sliding_window if sliding_window is not None and length > sliding_window else None
    if query.device.type == "cpu":
        # On CPUs the backward pass of the fused kernel takes three times as long as that of plain matrix products.
        group = heads // kv_heads
        q = query.reshape(rows * kv_heads, group * length, size)
        k, v = (x.reshape(rows * kv_heads, length, size) for x in (key, value))
        bias = _bias(length, window, group, q.dtype)
        scores = torch.baddbmm(bias[None], q, k.transpose(1, 2), alpha=scaling or size**-0.5)
        out = torch.bmm(torch.softmax(scores, dim=-1), v).reshape(rows, heads, length, size)
    else:
        mask = None if window is None else _windowed(length, window, query.device)
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=heads != kv_heads
        )
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, torch.compiler.disable(rows_attention))
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def states(body: Any, ids: Tensor) -> Tensor:
    """Hidden states after the final norm, shape (B * L, hidden), of rows of ids (B, L)."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None].expand(ids.shape[0], -1)
    hidden: Tensor = body(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)


def line_loss(hidden: Tensor, embedding: Tensor, batch: Rows) -> Tensor:
    """Mean negative log-likelihood of the right options, in nats; zero where there is nothing to decide."""
    if not len(batch.at):
        return hidden.sum() * 0.0
    return F.cross_entropy(logits(hidden, embedding, batch), batch.right, ignore_index=_IGNORED)


def logits(hidden: Tensor, embedding: Tensor, batch: Rows) -> Tensor:
    """Of each decision's options, (N, width); as good as minus infinity where there are fewer."""
    said = (hidden[batch.at][batch.row].float() * embedding[batch.options].float()).sum(-1)
    wide = said.new_full((len(batch.at), batch.width), _NEVER)
    return wide.index_put((batch.row, batch.column), said)
