"""The span encoder: embeddings and scores of candidates, by which the selector decides.

The base model with its own adapter and bidirectional attention reads a segment once for all of its candidates. A
candidate's embedding is computed from the hidden states of its first and last token and of the tokens just outside, and
from its type; a linear head on the embedding gives the log-odds that it is a correct mention.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared import entity_types
from shared.errors import SelectorError
from shared.messages import LANGS, Candidate, Lang
from shared.model.attention import Block
from shared.model.base_model import load_tokenizer
from shared.model.body import Body
from shared.model.loading import load_body
from shared.model.masks import block_mask, both_ways, sliding
from shared.selection.selector_folder import SELECTOR_FILE, SelectorFile, Way
from shared.settings import Settings
from shared.text.per_type import PerTypeTokens
from shared.text.pieces import Pieces, split

HEAD_FILE = "head.safetensors"
TYPES_AT_ONCE = 3  # lines per segment in training, where it is read as the generator reads it


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

        Raises :class:`SelectorError` if the sizes differ.
        """
        made = SelectorFile.load(folder)
        weights = load_file(folder / HEAD_FILE)
        rows, size, hidden = weights.pop("types.weight"), self.outer.out_features, self.inner.out_features
        if (made.size, made.hidden) != (size, hidden):
            raise SelectorError(
                f"selector: {folder} has size {made.size} and hidden {made.hidden}, not {size} and {hidden}; "
                "set both fields to these, or train without `init`"
            )
        self.load_state_dict(weights, strict=False)
        with torch.no_grad():
            for row, key in zip(rows, made.types, strict=True):
                if key in self.known:
                    self.types.weight[self.known.index(key)] = row


@dataclass(frozen=True, slots=True)
class SegmentTokens:
    """A segment's tokens: the start token, the pieces and a line break, as in a generator's prefix.

    ``first``, ``last``: the first and last token of each piece. With ``headers``, by type, the segment is read as the
    generator reads it: the prefix, then for each type its header and a copy of the pieces, ``line``, which ``first``
    and ``last`` index. Without, it is read once, bidirectionally, whatever the types.
    """

    ids: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]
    line: tuple[int, ...] = ()
    headers: Mapping[int, tuple[int, ...]] | None = None

    @classmethod
    def of(
        cls, tokens: PerTypeTokens, pieces: Pieces, headers: Mapping[int, tuple[int, ...]] | None = None
    ) -> SegmentTokens:
        """From the pieces of a segment."""
        ids, first, last = _runs(tokens, pieces, copied=False)
        whole = (*tokens.bos, *ids, *tokens.newline)
        if headers is None:
            ahead = len(tokens.bos)
            return cls(whole, tuple(n + ahead for n in first), tuple(n + ahead for n in last))
        line, first, last = _runs(tokens, pieces, copied=True)
        return cls(whole, first, last, (*line, *tokens.newline), headers)

    def __len__(self) -> int:
        """Tokens when packed for the most types."""
        if self.headers is None:
            return len(self.ids)
        header = max(map(len, self.headers.values()), default=0)
        return len(self.ids) + min(TYPES_AT_ONCE, len(self.headers)) * (header + len(self.line))

    def packed(self, types: Iterable[int]) -> PackedSegment:
        """The tokens to run for some types."""
        ids, positions = list(self.ids), list(range(len(self.ids)))
        if self.headers is None:
            return PackedSegment(self, tuple(ids), tuple(positions), {}, ())
        begins, lengths = {}, []
        for type_ in dict.fromkeys(types):
            line = (*self.headers[type_], *self.line)
            begins[type_] = len(ids) + len(self.headers[type_])
            lengths.append(len(line))
            ids += line
            positions += range(len(self.ids), len(self.ids) + len(line))
        return PackedSegment(self, tuple(ids), tuple(positions), begins, tuple(lengths))


def _runs(
    tokens: PerTypeTokens, pieces: Pieces, *, copied: bool
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The tokens of all pieces, and the first and last token of each."""
    ids: list[int] = []
    first, last = [], []
    for i, (start, end) in enumerate(zip(pieces.starts, pieces.ends, strict=True)):
        first.append(len(ids))
        ids += tokens.copy(pieces, i, after_open=False) if copied else tokens.ids(pieces.text[start:end])
        last.append(len(ids) - 1)
    return tuple(ids), tuple(first), tuple(last)


@dataclass(frozen=True, slots=True)
class PackedSegment:
    """A segment's tokens as part of a packed stream.

    ``ids``, ``positions``: (T,); ``begins``: first token of each type's line; ``lines``: their lengths.
    """

    segment: SegmentTokens
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    begins: Mapping[int, int]
    lines: tuple[int, ...]

    def boundaries(self, type_: int, start: int, end: int) -> tuple[int, int, int, int]:
        """The tokens before, first in, last in and after a half-open piece range."""
        begin = self.begins.get(type_, 0)
        first, last = begin + self.segment.first[start], begin + self.segment.last[end - 1]
        return max(0, first - 1), first, last, last + 1

    def block(self, at: int, window: int | None, device: torch.device | str) -> Block:
        """The attention block, starting at token ``at`` of the stream."""
        length = len(self.ids)
        if self.segment.headers is None:
            return Block(at, at + length, *both_ways(length, window, device))
        mask = block_mask(len(self.segment.ids), self.lines, device)
        where = torch.tensor(self.positions, device=device)
        return Block(at, at + length, mask, sliding(mask, where, where, window))


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

    def __init__(
        self, body: Body, head: SpanHead, tokens: PerTypeTokens, batch_tokens: int, way: Way = "both-ways"
    ) -> None:
        """``body``: the model; a forward pass has at most ``batch_tokens`` tokens, or one segment."""
        self._body = body
        self._head = head
        self._tokens = tokens
        self._types = {key: i for i, key in enumerate(head.known)}
        self._headers = None if way == "both-ways" else {lang: headers(tokens, head.known, lang) for lang in LANGS}
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
        tokens = PerTypeTokens(load_tokenizer(settings))

        def with_head(body: Body) -> SpanEncoder:
            head = SpanHead(body.config.hidden_size, made.types, made.hidden, made.size)
            head.read(folder)
            head = head.to(body.embedding.device).eval().requires_grad_(False)
            return cls(body, head, tokens, batch_tokens, made.reading)

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
        segments: dict[tuple[str, Lang], list[int]] = {}
        for i in np.flatnonzero(encoded.known).tolist():
            segment = candidates[i].segment
            segments.setdefault((segment.text, segment.lang), []).append(i)
        for group in self._groups(segments, candidates):
            self._encode(group, candidates, encoded)
        return encoded

    def _groups(
        self, segments: Mapping[tuple[str, Lang], list[int]], candidates: Sequence[Candidate]
    ) -> Iterator[list[tuple[Pieces, PackedSegment, list[int]]]]:
        group: list[tuple[Pieces, PackedSegment, list[int]]] = []
        used = 0
        for (text, lang), rows in sorted(segments.items(), key=lambda item: len(item[0][0])):
            pieces = split(text)
            headers = None if self._headers is None else self._headers[lang]
            types = sorted({self._types[candidates[i].type] for i in rows})
            packed = SegmentTokens.of(self._tokens, pieces, headers).packed(types)
            if group and used + len(packed.ids) > self._batch_tokens:
                yield group
                group, used = [], 0
            group.append((pieces, packed, rows))
            used += len(packed.ids)
        if group:
            yield group

    def _encode(
        self,
        group: Sequence[tuple[Pieces, PackedSegment, list[int]]],
        candidates: Sequence[Candidate],
        encoded: Encoded,
    ) -> None:
        ids: list[int] = []
        positions: list[int] = []
        blocks: list[Block] = []
        rows: list[int] = []
        at: list[list[int]] = []
        for pieces, packed, candidate_rows in group:
            begin = len(ids)
            ids += packed.ids
            positions += packed.positions
            blocks.append(packed.block(begin, self._window, self._device))
            for i in candidate_rows:
                candidate = candidates[i]
                start, end = piece_range(
                    pieces, candidate.start - candidate.segment.start, candidate.end - candidate.segment.start
                )
                rows.append(i)
                boundaries = packed.boundaries(self._types[candidate.type], start, end)
                at.append([begin + token for token in boundaries])
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


def headers(tokens: PerTypeTokens, types: Sequence[str], lang: Lang) -> dict[int, tuple[int, ...]]:
    """The headers of a generator's lines, by the index of the type."""
    return {place: tokens.header(entity_types.get(key).name(lang)) for place, key in enumerate(types)}


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
