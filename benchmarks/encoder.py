"""An encoder of the size that people deploy, on the same segments: what reading them costs it on the same cores.

Its shape is that of GLiNER medium (arXiv 2311.08526): DeBERTa-v3-base reads the types and the words together, a BiLSTM
runs over the words, and each span of up to twelve words gets a vector, whose product with a type's vector is its score.
Its weights are random, since speed does not depend on them, so it finds nothing; its tokens are the base model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from services.generation.engine import TagRequest
from shared import entity_types
from shared.messages import TaggedLine
from shared.text.pieces import split

LONGEST = 12  # words of a span
_BATCH = 16
_MARK, _END = 1, 2  # before each type, and behind the last one


def configuration(**changes: Any) -> Any:
    """The configuration of DeBERTa-v3-base, with changes."""
    from transformers import DebertaV2Config

    return DebertaV2Config(
        **{
            "vocab_size": 128_100,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "relative_attention": True,
            "position_buckets": 256,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "type_vocab_size": 0,
            "max_position_embeddings": 512,
            "layer_norm_eps": 1e-7,
            "legacy": False,
            **changes,
        }
    )


def _twice(size: int, inner: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, inner), nn.ReLU(), nn.Linear(inner, out))


class Encoder(nn.Module):
    """The model, in evaluation mode."""

    def __init__(self, tokenizer: Any, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its module is compiled by torch.jit.script
            from transformers import DebertaV2Model

        size = config.hidden_size
        self._tokenizer, self._vocabulary = tokenizer, config.vocab_size
        self.encoder = DebertaV2Model(config)
        self.words = nn.LSTM(size, size // 2, batch_first=True, bidirectional=True)
        self.starts, self.ends = _twice(size, 4 * size, size), _twice(size, 4 * size, size)
        self.spans, self.types = _twice(2 * size, 4 * size, size), _twice(size, 4 * size, size)
        self.to(dtype).eval()

    def tag(self, requests: Sequence[TagRequest]) -> list[TaggedLine]:
        """Scores every span of every segment; finds nothing. Segments of like length are read together."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].segment.text))
        for at in range(0, len(order), _BATCH):
            self.scores([requests[i] for i in order[at : at + _BATCH]])
        return [TaggedLine(segment=one.segment, types=one.types, tagged="", presence=0.0) for one in requests]

    @torch.inference_mode()
    def scores(self, requests: Sequence[TagRequest]) -> Tensor:
        """Of each segment, first word, length in words less one, and type: (B, words, 12, types), padded."""
        rows = [self._ids(request) for request in requests]
        width = max(len(ids) for ids, _, _ in rows)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _, _ in rows])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _, _ in rows])
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        words = self._gathered(hidden, [words for _, _, words in rows])
        types = self.types(self._gathered(hidden, [types for _, types, _ in rows]))
        lengths = torch.tensor([len(words) for _, _, words in rows])
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        words = nn.utils.rnn.pad_packed_sequence(self.words(packed)[0], batch_first=True)[0]
        starts, ends = self.starts(words), self.ends(words)
        last = (torch.arange(words.shape[1])[:, None] + torch.arange(LONGEST)).clamp(max=words.shape[1] - 1)
        both = torch.cat([starts[:, :, None].expand(-1, -1, LONGEST, -1), ends[:, last]], dim=-1).relu()
        return torch.einsum("bwld,btd->bwlt", self.spans(both), types)

    def _ids(self, request: TagRequest) -> tuple[list[int], list[int], list[int]]:
        """Tokens of types and words; where each type's mark is, and where each word begins."""
        ids: list[int] = []
        types, words = [], []
        for key in request.types:
            types.append(len(ids))
            ids += [_MARK, *self._tokens(entity_types.get(key).name(request.segment.lang))]
        ids.append(_END)
        pieces = split(request.segment.text)
        for i in range(len(pieces)):
            words.append(len(ids))
            ids += self._tokens(pieces.core(i))
        return ids, types, words

    def _tokens(self, text: str) -> list[int]:
        return [token % self._vocabulary for token in self._tokenizer.encode(text, add_special_tokens=False)]

    @staticmethod
    def _gathered(hidden: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
        """The states (B, most, size) at places of each row, padded with the row's first state."""
        most = max(map(len, places))
        at = torch.tensor([[*row, *[0] * (most - len(row))] for row in places])
        return hidden.gather(1, at[:, :, None].expand(-1, -1, hidden.shape[-1]))
