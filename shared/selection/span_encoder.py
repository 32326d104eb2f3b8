"""The span encoder: embeddings and scores of candidates, by which the selector decides.

The base model with its own adapter and bidirectional attention reads a segment once for all of its candidates. A
candidate's embedding is computed from the hidden states of its first and last token and of the tokens just outside, and
from its type; a linear head on the embedding gives the log-odds that it is a correct mention.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared import entity_types
from shared.errors import SelectorError
from shared.messages import Candidate
from shared.model.attention import Block
from shared.model.base_model import load_tokenizer
from shared.model.body import Body
from shared.model.loading import load_body
from shared.model.masks import both_ways
from shared.selection.selector_folder import SELECTOR_FILE, SelectorFile
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from shared.text.pieces import Pieces, split

HEAD_FILE = "head.safetensors"


class SpanHead(nn.Module):
    """Maps boundary states and a type to an embedding and log-odds. ``known``: type keys, in the order of its table."""

    def __init__(self, width: int, known: Sequence[str], hidden: int, size: int) -> None:
        super().__init__()
        self.known = tuple(known)
        self.states = nn.Linear(4 * width, hidden)
        self.types = nn.Embedding(len(known), 2 * hidden)  # a scale and a shift each
        nn.init.normal_(self.types.weight, std=0.02)
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, size)
        self.judge = nn.Linear(size, 1)

    def forward(self, states: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """States (n, 4, width) and types (n,) to embeddings (n, size) of norm 1 and log-odds (n,)."""
        normal = F.layer_norm(states, states.shape[-1:]).flatten(1)
        scale, shift = self.types(types).chunk(2, dim=-1)
        inner = F.gelu(self.states(normal)) * (1 + scale) + shift
        embeddings = F.normalize(self.outer(F.gelu(self.inner(inner))), dim=-1)
        # Scaled to unit variance, so that the head's weights have the usual magnitude.
        return embeddings, self.judge(embeddings * embeddings.shape[-1] ** 0.5)[:, 0]

    def read(self, folder: Path) -> None:
        """Loads the weights from a selector's folder, with the embeddings of the types that both know.

        Raises :class:`SelectorError` if the sizes differ or the file is no such weights.
        """
        made = SelectorFile.load(folder)
        size, hidden = self.outer.out_features, self.inner.out_features
        if (made.size, made.hidden) != (size, hidden):
            raise SelectorError(
                f"selector: {folder} has size {made.size} and hidden {made.hidden}, not {size} and {hidden}; "
                "set both fields to these, or train without `init`"
            )
        try:
            weights = load_file(folder / HEAD_FILE)
            rows = weights.pop("types.weight")
            self.load_state_dict(weights, strict=False)
            with torch.no_grad():
                for row, key in zip(rows, made.types, strict=True):
                    if key in self.known:
                        self.types.weight[self.known.index(key)] = row
        except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError):
            raise SelectorError(
                f"selector: {folder / HEAD_FILE} does not hold the weights that {SELECTOR_FILE} describes; copy the "
                "selector again, with all its files"
            ) from None


@dataclass(frozen=True, slots=True)
class SegmentTokens:
    """A segment's tokens: the start token, the pieces and a line break.

    ``first``, ``last``: the first and last token of each piece.
    """

    ids: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]

    @classmethod
    def of(cls, tokens: CopyTokens, pieces: Pieces) -> SegmentTokens:
        """From the pieces of a segment."""
        ids = list(tokens.bos)
        first, last = [], []
        for start, end in zip(pieces.starts, pieces.ends, strict=True):
            first.append(len(ids))
            ids += tokens.ids(pieces.text[start:end])
            last.append(len(ids) - 1)
        return cls((*ids, *tokens.newline), tuple(first), tuple(last))

    def __len__(self) -> int:
        return len(self.ids)

    def boundaries(self, start: int, end: int) -> tuple[int, int, int, int]:
        """The tokens before, first in, last in and after a half-open piece range."""
        first, last = self.first[start], self.last[end - 1]
        return max(0, first - 1), first, last, last + 1

    def block(self, at: int, window: int | None, device: torch.device | str) -> Block:
        """The attention block, starting at token ``at`` of the stream."""
        return Block(at, at + len(self), *both_ways(len(self), window, device))


@dataclass(frozen=True, slots=True)
class Encoded:
    """``embeddings`` (n, size) and ``logits`` (n,) of n candidates; zeros where ``known`` (n,) is false.

    A type is known if the encoder was trained on it.
    """

    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32]
    known: NDArray[np.bool_]


class SpanEncoder:
    """Encodes candidates, see the module. Not thread-safe."""

    def __init__(self, body: Body, head: SpanHead, tokens: CopyTokens, batch_tokens: int) -> None:
        """``body``: the model; a forward pass has at most ``batch_tokens`` tokens, or one segment."""
        self._body = body
        self._head = head
        self._tokens = tokens
        self._types = {key: i for i, key in enumerate(head.known)}
        self._window = getattr(body.config, "sliding_window", None)
        self._batch_tokens = batch_tokens
        self._device = body.embedding.device
        self.size = head.outer.out_features
        self.forwarded = 0  # tokens so far, for benchmarks

    @classmethod
    def load(cls, settings: Settings, folder: Path, batch_tokens: int = 4096, dtype: str = "auto") -> SpanEncoder:
        """The base model of the settings with adapter and head from a folder made by ``biobracket train selector``.

        ``dtype``: see :func:`shared.model.loading.load_body`.
        """
        made = SelectorFile.load(folder)
        tokens = CopyTokens(load_tokenizer(settings))

        def with_head(body: Body) -> SpanEncoder:
            head = SpanHead(body.config.hidden_size, made.types, made.hidden, made.size)
            head.read(folder)
            head = head.to(body.embedding.device).eval().requires_grad_(False)
            return cls(body, head, tokens, batch_tokens)

        def example(body: Body) -> None:
            whole = [
                Candidate(segment=s, type=made.types[0], start=0, end=s.end, text=s.text, generator_confidence=0.5)
                for s in entity_types.definitions()
            ]
            with_head(body).encode(whole)

        return with_head(load_body(settings, folder, encoder_revision(settings, folder), dtype, example))

    def tokens(self, text: str) -> int:
        """Roughly how many tokens a segment takes."""
        return len(split(text)) + 2

    @torch.inference_mode()
    def encode(self, candidates: Sequence[Candidate]) -> Encoded:
        """The embeddings of candidates, in their order, from any number of segments."""
        encoded = Encoded(
            np.zeros((len(candidates), self.size), dtype=np.float32),
            np.zeros(len(candidates), dtype=np.float32),
            np.array([c.type in self._types for c in candidates], dtype=bool),
        )
        segments: dict[str, list[int]] = {}
        for i in np.flatnonzero(encoded.known).tolist():
            segments.setdefault(candidates[i].segment.text, []).append(i)
        for group in self._groups(segments):
            self._encode(group, candidates, encoded)
        return encoded

    def _groups(self, segments: Mapping[str, list[int]]) -> Iterator[list[tuple[Pieces, SegmentTokens, list[int]]]]:
        group: list[tuple[Pieces, SegmentTokens, list[int]]] = []
        used = 0
        for text, rows in sorted(segments.items(), key=lambda item: len(item[0])):
            pieces = split(text)
            tokens = SegmentTokens.of(self._tokens, pieces)
            if group and used + len(tokens) > self._batch_tokens:
                yield group
                group, used = [], 0
            group.append((pieces, tokens, rows))
            used += len(tokens)
        if group:
            yield group

    def _encode(
        self,
        group: Sequence[tuple[Pieces, SegmentTokens, list[int]]],
        candidates: Sequence[Candidate],
        encoded: Encoded,
    ) -> None:
        ids: list[int] = []
        positions: list[int] = []
        blocks: list[Block] = []
        rows: list[int] = []
        at: list[list[int]] = []
        for pieces, tokens, candidate_rows in group:
            begin = len(ids)
            ids += tokens.ids
            positions += range(len(tokens))
            blocks.append(tokens.block(begin, self._window, self._device))
            for i in candidate_rows:
                candidate = candidates[i]
                start, end = piece_range(
                    pieces, candidate.start - candidate.segment.start, candidate.end - candidate.segment.start
                )
                rows.append(i)
                at.append([begin + token for token in tokens.boundaries(start, end)])
        self.forwarded += len(ids)
        wanted, places = np.unique(at, return_inverse=True)
        hidden = self._body(ids, positions, blocks, wanted.tolist())
        types = torch.tensor([self._types[candidates[i].type] for i in rows], device=self._device)
        embeddings, logits = self._head(hidden[torch.from_numpy(places.reshape(-1, 4)).to(self._device)].float(), types)
        encoded.embeddings[rows] = embeddings.cpu().numpy()
        encoded.logits[rows] = logits.cpu().numpy()


def piece_range(pieces: Pieces, start: int, end: int) -> tuple[int, int]:
    """The half-open range of pieces that a span touches; one it covers in part counts as a whole."""
    first = min(bisect_right(pieces.ends, start), len(pieces) - 1)
    return first, max(first + 1, bisect_left(pieces.cores, end))


def encoder_revision(settings: Settings, folder: Path) -> str:
    """Sixteen hex digits that change with anything that affects the embeddings."""
    digest = hashlib.sha256(settings.base_model.encode())
    for name in ("adapter_config.json", "adapter_model.safetensors", HEAD_FILE, SELECTOR_FILE):
        digest.update(name.encode() + b"\x1f" + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def write_head(head: dict[str, Tensor], made: SelectorFile, folder: Path) -> None:
    """Writes what a span encoder needs besides its adapter."""
    save_file(head, folder / HEAD_FILE)
    (folder / SELECTOR_FILE).write_text(json.dumps(made.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
