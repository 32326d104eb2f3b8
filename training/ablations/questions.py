"""Asks the model a second question, as in the paper: is the marked span a mention of the type?

The prompt is the text with brackets around one candidate, and the name of a type; the answer is the first token of a
line, either a bracket or ` -`. Each candidate costs a pass over the whole text. Trained as a baseline
(``scheme: question``), never served.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from shared import entity_types
from shared.messages import Candidate
from shared.model.attention import run
from shared.selection.span_encoder import piece_range
from shared.text.per_type import PerTypeTokens, actions_of
from shared.text.pieces import Pieces, split
from shared.text.segmentation import segment
from training.data import spans
from training.data.corpora import Example
from training.data.lines import SegmentLines, TargetLine, pack
from training.data.mixing import grouped


def items(examples: Sequence[Example], tokens: PerTypeTokens, max_units: int) -> list[SegmentLines]:
    """One item per question: each mention, a copy with a moved boundary, and one random span of the segment."""
    draw = random.Random(0)  # noqa: S311 - an order, not a secret
    out = []
    for example in examples:
        segments = segment(example.text, example.lang, max_units)
        found = spans.items([example], tokens, example.types, max_units)
        for (start, end), item in zip(segments, found, strict=True):
            pieces = split(example.text[start:end])
            for span in item.drawn(spans.FewNegatives(), draw).spans:
                name = entity_types.get(example.types[span.type]).name(example.lang)
                out.append(_question(tokens, pieces, span.start, span.end, name, span.right))
    return out


def _question(
    tokens: PerTypeTokens, pieces: Pieces, start: int, end: int, name: str, right: bool = True
) -> SegmentLines:
    marked = [token for _, ids in tokens.steps(pieces, actions_of(len(pieces), [(start, end)])) for token in ids]
    header = tokens.header(name)
    answers = (tokens.open[0], tokens.absent[0])
    return SegmentLines(
        (*tokens.bos, *marked, *tokens.newline), (TargetLine(header, ((len(header) - 1, answers, 0 if right else 1),)),)
    )


@torch.inference_mode()
def ask(model: Any, tokens: PerTypeTokens, candidates: Sequence[Candidate], batch_tokens: int = 4096) -> list[float]:
    """The log-odds that each candidate is correct, from a causal model with packed attention."""
    embedding = model.get_output_embeddings().weight
    answers = []
    for group in grouped(_asked(tokens, candidates), batch_tokens):
        size = -(-sum(map(len, group)) // 64) * 64
        batch = pack(group, size, embedding.device)
        picked = run(model.get_decoder(), batch.ids, batch.positions, batch.layout)[batch.at].float()
        logits = torch.einsum("nh,nkh->nk", picked, embedding[batch.options].float())
        answers += (logits[:, 0] - logits[:, 1]).tolist()
    return answers


def _asked(tokens: PerTypeTokens, candidates: Sequence[Candidate]) -> Iterator[SegmentLines]:
    for c in candidates:
        pieces = split(c.segment.text)
        start, end = piece_range(pieces, c.start - c.segment.start, c.end - c.segment.start)
        yield _question(tokens, pieces, start, end, entity_types.get(c.type).name(c.segment.lang))
