"""Exemplars of a corpus for the selector's index: its mentions, and a generator's mistakes or sampled wrong spans."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.messages import Candidate, Segment
from shared.selection.exemplars.format import Exemplar
from shared.selection.span_encoder import SpanEncoder
from shared.text.grammar import CopyTokens
from shared.text.pieces import split
from shared.text.segmentation import segment
from training.data.candidates import digest
from training.data.corpora import Example, GoldMention
from training.data.spans import FewNegatives, items

_TEXTS = 64  # encoded at once


_NO_NEGATIVES = FewNegatives(boundary=0, elsewhere=0)


def of_corpus(
    name: str,
    examples: Sequence[Example],
    encoder: SpanEncoder,
    tokens: CopyTokens,
    *,
    max_units: int,
    texts: bool,
    mistakes: Mapping[str, Sequence[GoldMention]] | None = None,
) -> Iterator[tuple[NDArray[np.float32], list[Exemplar]]]:
    """Vectors (n, size) and exemplars, batch by batch. ``texts``: whether exemplars keep the text of their mentions.

    ``mistakes``: a generator's, from :func:`training.data.candidates.wrong`; they then serve as the rejected exemplars,
    and texts the generator was not run on are left out. Types the encoder was not trained on are left out.
    Deterministic.
    """
    draw = random.Random(0)  # noqa: S311 - an order, not a secret
    known_texts = [
        (number, example)
        for number, example in enumerate(examples)
        if mistakes is None or digest(example.text) in mistakes
    ]
    for begin in range(0, len(known_texts), _TEXTS):
        candidates: list[Candidate] = []
        exemplars: list[Exemplar] = []
        for number, example in known_texts[begin : begin + _TEXTS]:
            for candidate, right in _candidates(number, example, tokens, draw, max_units, mistakes):
                candidates.append(candidate)
                exemplars.append(
                    Exemplar(
                        accepted=right,
                        id=f"{name}:{number}:{candidate.start}-{candidate.end}:{candidate.type}",
                        type=candidate.type,
                        text=candidate.text if texts else None,
                        source=name,
                    )
                )
        encoded = encoder.encode(candidates)
        known = np.flatnonzero(encoded.known).tolist()
        yield encoded.embeddings[known], [exemplars[i] for i in known]


def _candidates(
    number: int,
    example: Example,
    tokens: CopyTokens,
    draw: random.Random,
    max_units: int,
    mistakes: Mapping[str, Sequence[GoldMention]] | None,
) -> Iterator[tuple[Candidate, bool]]:
    spans = segment(example.text, example.lang, max_units)
    for index, (item, (start, end)) in enumerate(
        zip(items([example], tokens, example.types, max_units, mistakes), spans, strict=True)
    ):
        text = example.text[start:end]
        pieces = split(text)
        within = Segment(document_id=str(number), index=index, start=start, end=end, text=text, lang=example.lang)
        for span in item.drawn(FewNegatives() if mistakes is None else _NO_NEGATIVES, draw).spans:
            first, last = pieces.cores[span.start], pieces.ends[span.end - 1]
            yield (
                Candidate(
                    segment=within,
                    type=example.types[span.type],
                    start=start + first,
                    end=start + last,
                    text=text[first:last],
                    generator_confidence=1.0,
                ),
                span.right,
            )
