"""From examples to packed batches: segments with a line for each type, as the per-type engine decodes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared import entity_types
from shared.model.attention import Block
from shared.model.masks import block_mask, causal
from shared.text.per_type import Action, PerTypeTokens, actions_of, nested_only
from shared.text.pieces import split, to_piece_spans
from shared.text.segmentation import segment
from training.data.corpora import Example


@dataclass(frozen=True, slots=True)
class TargetLine:
    """The tokens of one type's line after the prefix, and its targets.

    ``decisions``: for each the index of the token before it, the first ids of the admissible actions, and which is
    right.
    """

    ids: tuple[int, ...]
    decisions: tuple[tuple[int, tuple[int, ...], int], ...]
    absent: bool = False


@dataclass(frozen=True, slots=True)
class SegmentLines:
    """A segment with its lines, which share its prefix."""

    prefix: tuple[int, ...]
    lines: tuple[TargetLine, ...]

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(line.ids) for line in self.lines)

    def thinned(self, negatives: float, draw: random.Random) -> SegmentLines:
        """The item with a random share ``negatives`` of the lines of absent types, and at least one line."""
        kept = tuple(line for line in self.lines if not line.absent or draw.random() < negatives)
        return SegmentLines(self.prefix, kept or (draw.choice(self.lines),))


@dataclass(frozen=True, slots=True)
class PackedLines:
    """A packed stream of exactly T tokens.

    ``ids``, ``positions``: (T,); ``at``: (N,) index of the token before each decision; ``options``: (N, K) first ids of
    the admissible actions, padded with 0 where ``valid`` (N, K) is false; ``right``: (N,) index of the right one.
    """

    ids: Tensor
    positions: Tensor
    layout: list[Block]
    at: Tensor
    options: Tensor
    valid: Tensor
    right: Tensor
    tokens: int


def items(examples: Sequence[Example], tokens: PerTypeTokens, max_units: int) -> list[SegmentLines]:
    """One item per segment, without mentions that cross a segment boundary or do not end at piece boundaries."""
    out = []
    for example in examples:
        for start, end in segment(example.text, example.lang, max_units):
            pieces = split(example.text[start:end])
            lines = []
            for key in example.types:
                inside = [
                    (m.start - start, m.end - start)
                    for m in example.mentions
                    if m.type == key and start <= m.start and m.end <= end
                ]
                header = tokens.header(entity_types.get(key).name(example.lang))
                spans = nested_only(to_piece_spans(pieces, inside))
                actions = actions_of(len(pieces), spans)
                ids, decisions = tokens.line(pieces, actions)
                lines.append(
                    TargetLine(
                        (*header, *ids),
                        tuple((len(header) + d.at - 1, d.ids, d.taken) for d in decisions),
                        absent=actions == [Action.ABSENT],
                    )
                )
            out.append(SegmentLines(tuple(tokens.prefix(pieces)), tuple(lines)))
    return out


def pack(chosen: Sequence[SegmentLines], size: int, device: torch.device | str = "cpu") -> PackedLines:
    """Packs items into a stream of ``size`` tokens; the rest is padding that nothing attends to."""
    ids: list[int] = []
    positions: list[int] = []
    layout: list[Block] = []
    at: list[int] = []
    options: list[tuple[int, ...]] = []
    right: list[int] = []
    for item in chosen:
        start = len(ids)
        ids += item.prefix
        positions += range(len(item.prefix))
        for line in item.lines:
            for before, first, taken in line.decisions:
                at.append(len(ids) + before)
                options.append(first)
                right.append(taken)
            ids += line.ids
            positions += range(len(item.prefix), len(item.prefix) + len(line.ids))
        mask = block_mask(len(item.prefix), [len(line.ids) for line in item.lines], device)
        layout.append(Block(start, len(ids), mask))
    tokens = len(ids)
    fill(ids, positions, layout, size, device)
    width = max(map(len, options), default=1)
    padded = [first + (0,) * (width - len(first)) for first in options]
    valid = [[i < len(first) for i in range(width)] for first in options]
    return PackedLines(
        torch.tensor(ids, device=device),
        torch.tensor(positions, device=device),
        layout,
        torch.tensor(at, dtype=torch.long, device=device),
        torch.tensor(padded, dtype=torch.long, device=device).view(-1, width),
        torch.tensor(valid, dtype=torch.bool, device=device).view(-1, width),
        torch.tensor(right, dtype=torch.long, device=device),
        tokens,
    )


def fill(ids: list[int], positions: list[int], layout: list[Block], size: int, device: torch.device | str) -> None:
    """Pads a stream to its size in place, with padding that nothing attends to; ValueError if it is longer."""
    tokens = len(ids)
    if tokens > size:
        raise ValueError(f"{tokens} tokens do not fit into a batch of {size}")
    for start in range(tokens, size, 128):  # in small blocks: attention over it is wasted
        end = min(start + 128, size)
        ids += [0] * (end - start)
        positions += range(end - start)
        layout.append(Block(start, end, causal(end - start, device=device)))
