"""From examples to packed batches for the span encoder: segments, each with right and wrong spans."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from shared.copying import CopyTokens
from shared.packing import Block, both_ways
from shared.pieces import split, to_piece_spans
from shared.segmentation import segment
from shared.span_encoder import SegmentTokens
from training.corpora import Example
from training.tasks import fill

# How far the two ends of a mention are moved, in pieces.
_MOVES = [(a, b) for a in range(-3, 4) for b in range(-3, 4) if (a, b) != (0, 0)]
# A generator is mostly wrong by one piece at one end.
_MOVE_WEIGHTS = [1.0 / (abs(a) + abs(b)) ** 2 for a, b in _MOVES]
# Of spans drawn anywhere, in pieces.
_LENGTHS = (1, 1, 1, 2, 2, 3, 4, 6)


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open piece range, a type by its place in the head's table, and whether it is a mention of that type."""

    start: int
    end: int
    type: int
    right: bool


class Counts(Protocol):
    """How many wrong spans are drawn: see :class:`training.config.SelectorConfig`, which is one."""

    @property
    def boundary(self) -> int: ...
    @property
    def inner(self) -> int: ...
    @property
    def wrong_types(self) -> int: ...
    @property
    def elsewhere(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SpanItem:
    """A segment with its mentions, the types that its corpus annotates, and the spans that are learnt from."""

    tokens: SegmentTokens
    gold: tuple[Span, ...]
    types: tuple[int, ...]
    spans: tuple[Span, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens.ids)

    def drawn(self, counts: Counts, draw: random.Random) -> SpanItem:
        """The item with its mentions and with wrong spans, drawn anew."""
        pieces = len(self.tokens.first)
        taken = {(g.start, g.end, g.type) for g in self.gold}
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
        return replace(self, spans=(*self.gold, *wrong))


def items(examples: Sequence[Example], tokens: CopyTokens, types: Sequence[str], max_units: int) -> list[SpanItem]:
    """One item a segment. A mention that crosses a segment or a piece boundary cannot be learnt from.

    ``types``: keys, in the order of the head's table.
    """
    place = {key: i for i, key in enumerate(types)}
    out = []
    for example in examples:
        known = tuple(place[key] for key in example.types)
        for start, end in segment(example.text, example.lang, max_units):
            pieces = split(example.text[start:end])
            gold = [
                Span(first, last, place[m.type], True)
                for m in example.mentions
                if start <= m.start and m.end <= end
                for first, last in to_piece_spans(pieces, [(m.start - start, m.end - start)])
            ]
            out.append(SpanItem(SegmentTokens.of(tokens, pieces), tuple(dict.fromkeys(gold)), known))
    return out


@dataclass(frozen=True, slots=True)
class SpanBatch:
    """A packed stream of exactly T tokens, with N spans.

    ``ids``, ``positions``: (T,); ``at``: (N, 4) tokens before, at both ends of, and after each span; ``types``: (N,)
    places in the head's table; ``right``: (N,) true for mentions.
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
    """Items one after the other in a stream of ``size`` tokens; ``window``: of the base model's sliding layers."""
    ids: list[int] = []
    positions: list[int] = []
    layout: list[Block] = []
    at: list[list[int]] = []
    spans: list[Span] = []
    for item in chosen:
        begin, length = len(ids), len(item)
        ids += item.tokens.ids
        positions += range(length)
        layout.append(Block(begin, begin + length, *both_ways(length, window, device)))
        at += ([begin + token for token in item.tokens.boundaries(span.start, span.end)] for span in item.spans)
        spans += item.spans
    tokens = len(ids)
    fill(ids, positions, layout, size, device)
    return SpanBatch(
        torch.tensor(ids, device=device),
        torch.tensor(positions, device=device),
        layout,
        torch.tensor(at, dtype=torch.long, device=device).view(-1, 4),
        torch.tensor([span.type for span in spans], dtype=torch.long, device=device),
        torch.tensor([span.right for span in spans], dtype=torch.bool, device=device),
        tokens,
    )
