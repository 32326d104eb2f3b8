"""The copy constraint as a logits processor of vLLM. vLLM loads it, by name, into the process that runs the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

from services.generation.walk import KEY, Walk
from shared.text.grammar import CopyTokens, Labels, PieceTokens, Script
from shared.text.pieces import split

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig
    from vllm.v1.sample.logits_processor import BatchUpdate


@dataclass(slots=True)
class _Row:
    walk: Walk
    said: list[int]  # vLLM appends to it
    seen: int = 0


class CopyConstraint(LogitsProcessor):
    """Leaves of each row's logits those of the tokens that may come next in its line."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Requests come from our engine only."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        from transformers import AutoTokenizer

        tokens = self._tokens = CopyTokens(AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer))
        self._labels = lru_cache(1000)(lambda types, lang: Labels(tokens, types, lang))
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, said in batch_update.added:
            self._rows.pop(index, None)
            asked = (params.extra_args or {}).get(KEY)
            if asked is not None:
                self._rows[index] = _Row(self._walk(asked), said)
        for one, other, how in batch_update.moved:
            mine, theirs = self._rows.pop(one, None), self._rows.pop(other, None)
            if mine is not None:
                self._rows[other] = mine
            if theirs is not None and how is MoveDirectionality.SWAP:
                self._rows[one] = theirs

    def apply(self, logits: Tensor) -> Tensor:
        rows: list[int] = []
        ids: list[int] = []
        for index, row in self._rows.items():
            for token in row.said[row.seen :]:
                row.walk.take(token)
            row.seen = len(row.said)
            allowed = row.walk.allowed()
            rows += [index] * len(allowed)
            ids += allowed
        at = torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device)
        kept = logits[at]
        logits[torch.tensor(list(self._rows), device=logits.device)] = float("-inf")
        logits[at] = kept
        return logits

    def _walk(self, asked: dict[str, Any]) -> Walk:
        labels = self._labels(tuple(asked["types"]), asked["lang"])
        script = Script(self._tokens, PieceTokens(self._tokens, split(asked["text"])), labels)
        return Walk(script, asked["done"], asked["closing"])
