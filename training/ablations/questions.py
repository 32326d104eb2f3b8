"""Asks the model a second question, as in the paper: is the marked span a mention of the type?

The prompt is the text with brackets around one candidate, and the name of a type; the answer is the first token of a
line, either a bracket or `` -``. Each candidate costs a pass over the whole text. Trained as a baseline
(``scheme: question``), never served.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from shared import entity_types
from shared.messages import Candidate, Lang
from shared.selection.span_encoder import piece_range
from shared.text.grammar import CopyTokens, PieceTokens
from shared.text.pieces import split
from shared.text.segmentation import segment
from training.data import spans
from training.data.corpora import Example
from training.data.labelled import Item, Variation
from training.data.rows import NAME, arrays, logits, on_device, states
from training.data.spans import SpanItem


@dataclass(frozen=True, slots=True)
class AskedText:
    """A text of a corpus: its segments as tokens, each with its mentions."""

    types: tuple[str, ...]
    lang: Lang
    parts: tuple[tuple[PieceTokens, SpanItem], ...]

    def __len__(self) -> int:
        """Roughly how many tokens its questions have."""
        return sum(len(item) * (1 + 3 * len(item.gold)) for _, item in self.parts)


class Questions:
    """See :class:`training.data.labelled.ItemSource`: questions on mentions, moved boundaries and other spans."""

    def __init__(self, tokens: CopyTokens, max_units: int) -> None:
        self._tokens, self._max_units = tokens, max_units

    def sources(self, examples: Iterable[Example]) -> list[AskedText]:
        """A source text for each example."""
        return [AskedText(e.types, e.lang, tuple(self._parts(e))) for e in examples]

    def _parts(self, example: Example) -> Iterator[tuple[PieceTokens, SpanItem]]:
        found = spans.items([example], self._tokens, example.types, self._max_units)
        for (start, end), item in zip(segment(example.text, example.lang, self._max_units), found, strict=True):
            yield PieceTokens(self._tokens, split(example.text[start:end])), item

    def items(self, source: AskedText, draw: random.Random, vary: Variation) -> list[Item]:
        """A question for each mention, for a copy of it with a moved boundary, and for a random span of the segment."""
        del vary
        return [
            question(
                self._tokens,
                pieces,
                (span.start, span.end),
                entity_types.get(source.types[span.type]).name(source.lang),
                right=span.right,
            )
            for pieces, item in source.parts
            for span in item.drawn(spans.FewNegatives(), draw).spans
        ]


def question(tokens: CopyTokens, pieces: PieceTokens, span: tuple[int, int], name: str, *, right: bool = True) -> Item:
    """Whether a half-open range of pieces is a mention of the type of that name."""
    start, end = span
    marked = chain(
        *pieces.copies[:start],
        pieces.openings[start],
        pieces.bare[start],
        *pieces.copies[start + 1 : end],
        tokens.close,
        *pieces.copies[end:],
    )
    ids = (*tokens.bos, *marked, *tokens.newline, *tokens.ids(f"{name}:"))
    return Item(ids, ((len(ids) - 1, (tokens.open[0], tokens.absent[0]), 0 if right else 1),))


@torch.no_grad()
def ask(model: Any, tokens: CopyTokens, candidates: Sequence[Candidate], at_once: int = 16) -> list[float]:
    """The log-odds that each candidate is correct, from a causal model."""
    model.set_attn_implementation(NAME)
    embedding = model.get_output_embeddings().weight
    asked = [_asked(tokens, candidate) for candidate in candidates]
    answers = [0.0] * len(asked)
    for places in _batched(sorted(range(len(asked)), key=lambda i: len(asked[i])), at_once):
        batch = on_device(arrays([asked[i] for i in places], {}), embedding.device)
        found = logits(states(model.get_decoder(), batch.ids), embedding, batch)
        for i, odds in zip(places, (found[:, 0] - found[:, 1]).tolist(), strict=True):
            answers[i] = odds
    return answers


def _batched(places: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    return (places[i : i + size] for i in range(0, len(places), size))


def _asked(tokens: CopyTokens, candidate: Candidate) -> Item:
    pieces = split(candidate.segment.text)
    begin = candidate.segment.start
    span = piece_range(pieces, candidate.start - begin, candidate.end - begin)
    name = entity_types.get(candidate.type).name(candidate.segment.lang)
    return question(tokens, PieceTokens(tokens, pieces), span, name)
