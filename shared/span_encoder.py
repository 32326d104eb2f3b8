"""Span embeddings: what the selector judges candidates by (design section 5).

The base model with an adapter of its own, whose attention sees both ways, reads a segment once for all of its
candidates. A candidate's embedding is made of the states of its first and last token and of the two just outside, and
of its type; a linear head on the embedding gives the log-odds that it is a right mention.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.adapters import load_merged
from shared.base_model import load_tokenizer
from shared.copying import CopyTokens
from shared.errors import SelectorError
from shared.messages import Candidate
from shared.packing import Block, both_ways, causal, run
from shared.pieces import Pieces, split
from shared.settings import Settings

SELECTOR_FILE = "selector.json"
HEAD_FILE = "head.safetensors"
_ROUND = 64  # streams are padded to a multiple: matrix kernels are prepared per shape


class SelectorFile(BaseModel):
    """``selector.json``: what beside the weights makes a span encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1)
    types: tuple[str, ...] = Field(min_length=1, description="Entity type keys, in the order of the head's table.")
    size: int = Field(ge=1, description="Length of an embedding.")
    hidden: int = Field(ge=1, description="Width of the layers before it.")

    @classmethod
    def load(cls, folder: Path) -> SelectorFile:
        """That of a selector's folder. :class:`SelectorError` where there is none."""
        file = folder / SELECTOR_FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise SelectorError(
                f"selector: {file} cannot be read ({error.strerror}); set BIOBRACKET_SELECTOR to a folder made by "
                "`biobracket train selector`, or to nothing to select by the generator's confidence"
            ) from None
        except ValidationError as error:
            field = ".".join(str(part) for part in error.errors()[0]["loc"]) or "file"
            raise SelectorError(f"selector: {file}: {field} is not valid; train the selector again") from None


class SpanHead(nn.Module):
    """From boundary states and a type to an embedding and log-odds."""

    def __init__(self, width: int, types: int, hidden: int, size: int) -> None:
        super().__init__()
        self.states = nn.Linear(4 * width, hidden)
        self.types = nn.Embedding(types, 2 * hidden)  # a scale and a shift for each
        nn.init.normal_(self.types.weight, std=0.02)
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, size)
        self.judge = nn.Linear(size, 1)

    def forward(self, states: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """States (n, 4, width) and types (n,) to embeddings (n, size) of length one and log-odds (n,)."""
        known = F.layer_norm(states, states.shape[-1:]).flatten(1)
        scale, shift = self.types(types).chunk(2, dim=-1)
        inner = F.gelu(self.states(known)) * (1 + scale) + shift
        embeddings = F.normalize(self.outer(F.gelu(self.inner(inner))), dim=-1)
        # As if its numbers varied by one: the head's weights are then of the usual size.
        return embeddings, self.judge(embeddings * embeddings.shape[-1] ** 0.5)[:, 0]


@dataclass(frozen=True, slots=True)
class SegmentTokens:
    """A segment as the encoder reads it: its tokens, and the first and last token of each of its pieces."""

    ids: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]

    @classmethod
    def of(cls, tokens: CopyTokens, pieces: Pieces) -> SegmentTokens:
        """The start token, the pieces and a line break, as in a generator's prefix."""
        ids = list(tokens.bos)
        first, last = [], []
        for start, end in zip(pieces.starts, pieces.ends, strict=True):
            first.append(len(ids))
            ids += tokens.ids(pieces.text[start:end])
            last.append(len(ids) - 1)
        return cls((*ids, *tokens.newline), tuple(first), tuple(last))

    def boundaries(self, start: int, end: int) -> tuple[int, int, int, int]:
        """Tokens before, at the beginning, at the end, and after a half-open piece range."""
        return max(0, self.first[start] - 1), self.first[start], self.last[end - 1], self.last[end - 1] + 1


@dataclass(frozen=True, slots=True)
class Encoded:
    """Of n candidates: ``embeddings`` (n, size) and ``logits`` (n,); zeros where ``known`` (n,) is false.

    A type is known where the encoder was trained on it.
    """

    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32]
    known: NDArray[np.bool_]


class SpanEncoder:
    """See the module. Not thread-safe: one caller at a time."""

    def __init__(self, model: Any, head: SpanHead, tokens: CopyTokens, types: Sequence[str], batch_tokens: int) -> None:
        """``model``: a causal model with packed attention; a pass has at most ``batch_tokens``, or one segment."""
        self._body = model.get_decoder()
        self._head = head
        self._tokens = tokens
        self._types = {key: i for i, key in enumerate(types)}
        self._window = getattr(model.config, "sliding_window", None)
        self._batch_tokens = batch_tokens
        self._device = next(model.parameters()).device
        self.size = head.outer.out_features
        self.forwarded = 0  # tokens so far: what benchmarks count

    @classmethod
    def load(cls, settings: Settings, folder: Path, batch_tokens: int = 4096) -> SpanEncoder:
        """Base model of the settings, with adapter and head of a folder made by ``biobracket train selector``."""
        made = SelectorFile.load(folder)
        model = load_merged(settings, folder)
        head = SpanHead(model.config.hidden_size, len(made.types), made.hidden, made.size)
        head.load_state_dict(load_file(folder / HEAD_FILE))
        head = head.to(model.device).eval().requires_grad_(False)
        return cls(model, head, CopyTokens(load_tokenizer(settings)), made.types, batch_tokens)

    def tokens(self, text: str) -> int:
        """About how many tokens a segment costs."""
        return len(split(text)) + 2

    @torch.inference_mode()
    def encode(self, candidates: Sequence[Candidate]) -> Encoded:
        """The embeddings of candidates, in their order, whatever their segments."""
        encoded = Encoded(
            np.zeros((len(candidates), self.size), dtype=np.float32),
            np.zeros(len(candidates), dtype=np.float32),
            np.array([c.type in self._types for c in candidates], dtype=bool),
        )
        segments: dict[str, list[int]] = {}
        for i in np.flatnonzero(encoded.known).tolist():
            segments.setdefault(candidates[i].segment.text, []).append(i)
        for group in self._groups(sorted(segments, key=len)):
            self._encode(group, segments, candidates, encoded)
        return encoded

    def _groups(self, texts: Sequence[str]) -> Iterator[list[tuple[Pieces, SegmentTokens]]]:
        group: list[tuple[Pieces, SegmentTokens]] = []
        used = 0
        for text in texts:
            pieces = split(text)
            read = SegmentTokens.of(self._tokens, pieces)
            if group and used + len(read.ids) > self._batch_tokens:
                yield group
                group, used = [], 0
            group.append((pieces, read))
            used += len(read.ids)
        if group:
            yield group

    def _encode(
        self,
        group: Sequence[tuple[Pieces, SegmentTokens]],
        segments: dict[str, list[int]],
        candidates: Sequence[Candidate],
        encoded: Encoded,
    ) -> None:
        ids: list[int] = []
        positions: list[int] = []
        blocks: list[Block] = []
        rows: list[int] = []
        at: list[list[int]] = []
        for pieces, read in group:
            begin, length = len(ids), len(read.ids)
            ids += read.ids
            positions += range(length)
            blocks.append(Block(begin, begin + length, *both_ways(length, self._window, self._device)))
            for i in segments[pieces.text]:
                candidate = candidates[i]
                start, end = _piece_range(
                    pieces, candidate.start - candidate.segment.start, candidate.end - candidate.segment.start
                )
                rows.append(i)
                at.append([begin + token for token in read.boundaries(start, end)])
        self.forwarded += len(ids)
        if pad := -len(ids) % _ROUND:
            blocks.append(Block(len(ids), len(ids) + pad, causal(pad, device=self._device)))
            ids += [0] * pad
            positions += range(pad)
        stream = torch.tensor((ids, positions), device=self._device)
        hidden = run(self._body, stream[0], stream[1], blocks)
        types = torch.tensor([self._types[candidates[i].type] for i in rows], device=self._device)
        embeddings, logits = self._head(hidden[torch.tensor(at, device=self._device)].float(), types)
        encoded.embeddings[rows] = embeddings.cpu().numpy()
        encoded.logits[rows] = logits.cpu().numpy()


def _piece_range(pieces: Pieces, start: int, end: int) -> tuple[int, int]:
    """The half-open range of pieces that a span touches: one that ends within a piece is judged as if it had it all."""
    first = min(bisect_right(pieces.ends, start), len(pieces) - 1)
    return first, max(first + 1, bisect_left(pieces.cores, end))


def encoder_revision(settings: Settings, folder: Path) -> str:
    """Sixteen hex digits that change when what the encoder makes of a candidate does."""
    digest = hashlib.sha256(settings.base_model.encode())
    for name in ("adapter_config.json", "adapter_model.safetensors", HEAD_FILE, SELECTOR_FILE):
        digest.update(name.encode() + b"\x1f" + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def write_head(head: dict[str, Tensor], made: SelectorFile, folder: Path) -> None:
    """Writes what, beside an adapter, a span encoder is read from."""
    save_file(head, folder / HEAD_FILE)
    (folder / SELECTOR_FILE).write_text(json.dumps(made.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
