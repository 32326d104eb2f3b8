"""Packed batches for the span encoder: segments with correct and wrong spans (positives and negatives)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from shared.model.attention import Block
from shared.model.masks import causal
from shared.selection.span_encoder import SegmentTokens
from shared.text.grammar import CopyTokens
from shared.text.pieces import Pieces, split, to_piece_spans
from shared.text.segmentation import segment
from training.data.candidates import digest
from training.data.corpora import Example, GoldMention

# Shifts of the two ends of a mention, in pieces.
_MOVES = [(a, b) for a in range(-3, 4) for b in range(-3, 4) if (a, b) != (0, 0)]
# A generator's boundary errors are mostly one piece at one end.
_MOVE_WEIGHTS = [1.0 / (abs(a) + abs(b)) ** 2 for a, b in _MOVES]
# Lengths of spans drawn anywhere, in pieces.
_LENGTHS = (1, 1, 1, 2, 2, 3, 4, 6)


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open piece range, a type by its index in the head's table, and whether it is a mention of that type."""

    start: int
    end: int
    type: int
    right: bool


class NegativeCounts(Protocol):
    """How many wrong spans are drawn, as in :class:`training.config.SelectorConfig`."""

    @property
    def boundary(self) -> int: ...
    @property
    def inner(self) -> int: ...
    @property
    def wrong_types(self) -> int: ...
    @property
    def elsewhere(self) -> int: ...


@dataclass(frozen=True, slots=True)
class FewNegatives:
    """About as many wrong spans as correct ones; see :class:`NegativeCounts`."""

    boundary: int = 1
    inner: int = 0
    wrong_types: int = 0
    elsewhere: int = 1


@dataclass(frozen=True, slots=True)
class SpanItem:
    """A segment with its mentions, its corpus's types, a generator's mistakes, and the spans to train on."""

    tokens: SegmentTokens
    gold: tuple[Span, ...]
    types: tuple[int, ...]
    mistakes: tuple[Span, ...] = ()
    spans: tuple[Span, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def drawn(self, counts: NegativeCounts, draw: random.Random) -> SpanItem:
        """The item with its mentions, mistakes and freshly drawn wrong spans."""
        pieces = len(self.tokens.first)
        taken = {(s.start, s.end, s.type) for s in (*self.gold, *self.mistakes)}
        wrong: list[Span] = []

        def add(start: int, end: int, type_: int) -> None:
            if 0 <= start < end <= pieces and (start, end, type_) not in taken:
                taken.add((start, end, type_))
                wrong.append(Span(start, end, type_, False))

        for mention in self.gold:
            for left, right in draw.choices(_MOVES, _MOVE_WEIGHTS, k=counts.boundary):
                add(mention.start + left, mention.end + right, mention.type)
            for _ in range(counts.inner):
                start = draw.randrange(mention.start, mention.end)
                add(start, draw.randint(start + 1, mention.end), mention.type)
            for _ in range(counts.wrong_types):
                add(mention.start, mention.end, draw.choice(self.types))
        for _ in range(counts.elsewhere):
            start = draw.randrange(pieces)
            add(start, start + draw.choice(_LENGTHS), draw.choice(self.types))
        return replace(self, spans=(*self.gold, *self.mistakes, *wrong))


def items(
    examples: Sequence[Example],
    tokens: CopyTokens,
    types: Sequence[str],
    max_units: int,
    mistakes: Mapping[str, Sequence[GoldMention]] | None = None,
) -> list[SpanItem]:
    """One item per segment, without mentions that cross a segment boundary or do not end at piece boundaries.

    ``types``: keys, in the order of the head's table; ``mistakes``: a generator's, from
    :func:`training.data.candidates.wrong`.
    """
    place = {key: i for i, key in enumerate(types)}
    out = []
    for example in examples:
        known = tuple(place[key] for key in example.types)
        made = mistakes.get(digest(example.text), ()) if mistakes else ()
        for start, end in segment(example.text, example.lang, max_units):
            pieces = split(example.text[start:end])
            gold, wrong = (_spans(pieces, found, start, end, place) for found in (example.mentions, made))
            out.append(
                SpanItem(
                    SegmentTokens.of(tokens, pieces),
                    tuple(Span(*span, True) for span in gold),
                    known,
                    # The corpus may have been corrected since: its mentions are not mistakes.
                    tuple(Span(*span, False) for span in wrong if span not in gold),
                )
            )
    return out


def _spans(
    pieces: Pieces, mentions: Sequence[GoldMention], start: int, end: int, place: Mapping[str, int]
) -> list[tuple[int, int, int]]:
    """Piece ranges and types of the distinct mentions that lie in the segment ``start:end``."""
    inside = [m for m in mentions if start <= m.start and m.end <= end and m.type in place]
    return list(
        dict.fromkeys(
            (first, last, place[m.type])
            for m in inside
            for first, last in to_piece_spans(pieces, [(m.start - start, m.end - start)])
        )
    )


@dataclass(frozen=True, slots=True)
class SpanBatch:
    """A packed stream of T tokens with N spans.

    ``ids``, ``positions``: (T,); ``at``: (N, 4) the tokens before, first in, last in and after each span; ``types``:
    (N,) indexes into the head's table; ``right``: (N,) true for mentions.
    """

    ids: Tensor
    positions: Tensor
    layout: list[Block]
    at: Tensor
    types: Tensor
    right: Tensor
    tokens: int


def pack(
    chosen: Sequence[SpanItem], size: int, window: int | None = None, device: torch.device | str = "cpu"
) -> SpanBatch:
    """Packs items into a stream of ``size`` tokens; ``window``: that of the base model's sliding-window layers."""
    ids: list[int] = []
    positions: list[int] = []
    layout: list[Block] = []
    at: list[list[int]] = []
    spans: list[Span] = []
    for item in chosen:
        begin = len(ids)
        ids += item.tokens.ids
        positions += range(len(item))
        layout.append(item.tokens.block(begin, window, device))
        at += ([begin + token for token in item.tokens.boundaries(s.start, s.end)] for s in item.spans)
        spans += item.spans
    tokens = len(ids)
    _fill(ids, positions, layout, size, device)
    return SpanBatch(
        torch.tensor(ids, device=device),
        torch.tensor(positions, device=device),
        layout,
        torch.tensor(at, dtype=torch.long, device=device).view(-1, 4),
        torch.tensor([span.type for span in spans], dtype=torch.long, device=device),
        torch.tensor([span.right for span in spans], dtype=torch.bool, device=device),
        tokens,
    )


def _fill(ids: list[int], positions: list[int], layout: list[Block], size: int, device: torch.device | str) -> None:
    """Pads a stream to its size in place, with padding that nothing attends to; ValueError if it is longer."""
    tokens = len(ids)
    if tokens > size:
        raise ValueError(f"{tokens} tokens do not fit into a batch of {size}")
    for start in range(tokens, size, 128):  # in small blocks: attention over it is wasted
        end = min(start + 128, size)
        ids += [0] * (end - start)
        positions += range(end - start)
        layout.append(Block(start, end, causal(end - start, device=device)))
