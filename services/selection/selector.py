"""Selection: candidates of documents in, kept entities out.

A candidate's probability is that of its type's calibration, from the generator's confidence, and where there is a span
encoder from the log-odds of its head and the vote of the nearest labelled exemplars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from services.selection.config import SelectionConfig
from services.selection.overlaps import Scored, keep
from shared.adapters import adapter_folder, index_folder, selector_folder
from shared.calibration import Calibration, Judgement
from shared.messages import Candidate, Entity, Evidence
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.exemplars import ExemplarIndex, Neighbours
    from shared.span_encoder import SpanEncoder

# How fast the say of an exemplar falls with its distance, in cosine.
_REACH = 0.1


class Selector:
    """Decides which candidates are mentions. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        calibration: Calibration,
        encoder: SpanEncoder | None = None,
        index: ExemplarIndex | None = None,
        config: SelectionConfig | None = None,
    ) -> None:
        """Without an encoder, by the generator's confidence alone; without an index, no exemplars have a vote."""
        self._calibration = calibration
        self._encoder = encoder
        self._index = index
        self._config = config or SelectionConfig()

    @classmethod
    def load(
        cls, settings: Settings, calibration: Calibration | None = None, config: SelectionConfig | None = None
    ) -> Self:
        """The selector of the settings with its index, if it has one, else that of the adapter's calibration alone."""
        folder = selector_folder(settings)
        config = config or SelectionConfig()
        if folder is None:
            return cls(calibration or Calibration.for_adapter(adapter_folder(settings)), config=config)
        from shared.exemplars import ExemplarIndex
        from shared.span_encoder import SpanEncoder, encoder_revision

        place = index_folder(folder)
        index = ExemplarIndex.load(place, encoder=encoder_revision(settings, folder)) if place.is_dir() else None
        encoder = SpanEncoder.load(settings, folder, config.batch_tokens)
        return cls(calibration or Calibration.for_adapter(folder), encoder, index, config)

    def judge(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """What is known of each candidate."""
        return [judgement for judgement, _ in self._judged(candidates)]

    def _judged(self, candidates: Sequence[Candidate]) -> list[tuple[Judgement, tuple[Evidence, ...]]]:
        if self._encoder is None:
            return [(Judgement(c.generator_confidence, c.greedy), ()) for c in candidates]
        encoded = self._encoder.encode(candidates)
        votes = np.zeros(len(candidates), dtype=np.float32)
        evidence: list[tuple[Evidence, ...]] = [()] * len(candidates)
        if self._index is not None:
            for type_ in {c.type for c in candidates}:
                rows = [i for i, c in enumerate(candidates) if c.type == type_ and encoded.known[i]]
                near = self._index.search(type_, encoded.embeddings[rows], self._config.neighbours)
                votes[rows] = vote(near)
                for i, row in enumerate(rows):
                    evidence[row] = self._evidence(self._index, type_, near, i)
        return [
            (Judgement(c.generator_confidence, c.greedy, float(head), float(of_index)), seen)
            for c, head, of_index, seen in zip(candidates, encoded.logits, votes, evidence, strict=True)
        ]

    def _evidence(self, index: ExemplarIndex, type_: str, near: Neighbours, row: int) -> tuple[Evidence, ...]:
        found: list[Evidence] = []
        for position, similarity in zip(near.positions[row].tolist(), near.similarities[row].tolist(), strict=True):
            if position < 0 or len(found) == self._config.evidence:
                break
            exemplar = index.exemplar(type_, position)
            cosine = min(1.0, max(-1.0, similarity))
            found.append(Evidence(text=exemplar.text, type=type_, accepted=exemplar.accepted, similarity=cosine))
        return tuple(found)

    def tokens(self, candidates: Sequence[Candidate]) -> int:
        """About how many tokens the candidates of a document cost; batches are made by this."""
        if self._encoder is None:
            return 1
        return sum(map(self._encoder.tokens, {c.segment.text for c in candidates}))

    def select(self, documents: Sequence[Sequence[Candidate]]) -> list[tuple[Entity, ...]]:
        """The kept ones among the candidates of each document, in text order.

        Offsets are the document's. No span of a type comes twice and no two of a type cross. ``parent_id`` is left
        open: it depends on the entities of all types. The answer does not depend on the order of the candidates, nor
        on the other documents.
        """
        judged = iter(self._judged([candidate for document in documents for candidate in document]))
        answers = []
        for document in documents:
            scored = []
            for candidate in document:
                known, evidence = next(judged)
                probability = self._calibration.probability(candidate.type, known)
                if probability >= self._calibration.threshold(candidate.type):
                    scored.append(Scored(candidate, probability, evidence))
            answers.append(keep(scored))
        return answers


def vote(near: Neighbours) -> NDArray[np.float32]:
    """The vote of each row's neighbours, from -1 to 1, the nearer ones having more of a say; 0 where there are none."""
    there = near.positions >= 0
    similarities = np.where(there, near.similarities, -np.inf).astype(np.float64)
    nearest = similarities.max(axis=1, initial=-1.0, keepdims=True)
    weights = np.exp((similarities - nearest) / _REACH)  # nothing where padded
    total = weights.sum(axis=1)
    said = np.where(near.accepted, weights, -weights).sum(axis=1)
    # Rounding can take a unanimous vote a little beyond one.
    shares: NDArray[np.float64] = np.divide(said, total, out=np.zeros_like(said), where=total > 0)
    return shares.clip(-1.0, 1.0).astype(np.float32)
