"""The interface through which engine and span encoder run a causal model, and its ``transformers`` implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from shared.model.attention import Block, run
from shared.model.cache import Cache
from shared.model.masks import causal

_MULTIPLE = 16  # streams are padded to a multiple, long ones to one of 64: matrix kernels are prepared per shape


class Body(Protocol):
    """A causal model for inference: its layers, run over a packed stream, and its output embedding.

    ``embedding``: shape (vocabulary, hidden); ``config``: the configuration of the ``transformers`` model.
    """

    config: Any
    embedding: Tensor

    def cache(self) -> Cache:
        """An empty KV cache for this model."""

    def __call__(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        blocks: Sequence[Block],
        wanted: Sequence[int],
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states of the ``wanted`` tokens after the final norm, shape (wanted, hidden)."""


class Packed:
    """A ``transformers`` causal model with packed attention, unquantised."""

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
        if pad := -n % (_MULTIPLE if n < 512 else 64):
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
