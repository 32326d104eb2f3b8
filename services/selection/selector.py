"""Selection: candidates of documents in, kept entities out.

A candidate's probability is that of its type's calibration, from the generator's confidence and its margin over
overlapping spans, and where there is a span encoder from the log-odds of its head, the vote of the nearest labelled
exemplars, and what the gazetteer knows of the words. What a reviewer said of it, or of a near copy, comes before all
that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from services.selection.config import SelectionConfig
from services.selection.overlaps import Scored, keep, margins
from services.selection.reviews import Reviews
from shared.messages import Basis, Candidate, Evidence, Selected, exemplars_state
from shared.selection.calibration import Calibration, Judgement
from shared.selection.selector_folder import index_folder, selector_folder
from shared.settings import Settings

if TYPE_CHECKING:
    from services.selection.knowledge import Found, Knowledge
    from shared.backends.feedback_store import FeedbackStore
    from shared.selection.exemplars import Neighbours
    from shared.selection.gazetteer import Gazetteer
    from shared.selection.span_encoder import SpanEncoder

# How fast the say of an exemplar falls with its distance, in cosine.
_REACH = 0.1


class Selector:
    """Decides which candidates are mentions. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        calibration: Calibration,
        encoder: SpanEncoder | None = None,
        knowledge: Knowledge | None = None,
        reviews: Reviews | None = None,
        config: SelectionConfig | None = None,
        gazetteer: Gazetteer | None = None,
    ) -> None:
        """Without an encoder, by the generator's confidence alone; without knowledge, no exemplars have a vote."""
        self._calibration = calibration
        self._encoder = encoder
        self._knowledge = knowledge
        self._reviews = reviews
        self._config = config or SelectionConfig()
        self._gazetteer = gazetteer

    @classmethod
    def load(
        cls,
        settings: Settings,
        calibration: Calibration | None = None,
        config: SelectionConfig | None = None,
        feedback: FeedbackStore | None = None,
    ) -> Self:
        """The selector of the settings with its index, if it has one, else that of the adapter's calibration alone.

        ``feedback``: where to learn what reviewers say; none where it should not.
        """
        folder = selector_folder(settings)
        config = config or SelectionConfig()
        calibration = calibration or Calibration.for_settings(settings)
        reviews = None if feedback is None else Reviews(feedback, config.near_copy)
        if folder is None:
            return cls(calibration, reviews=reviews, config=config)
        from services.selection.knowledge import Knowledge
        from shared.selection.gazetteer import Gazetteer
        from shared.selection.span_encoder import SpanEncoder, encoder_revision

        encoder = SpanEncoder.load(settings, folder, config.batch_tokens, config.dtype)
        knowledge = Knowledge(encoder.size, encoder_revision(settings, folder), index_folder(folder))
        return cls(calibration, encoder, knowledge, reviews, config, Gazetteer.load(folder))

    @property
    def encoder(self) -> SpanEncoder | None:
        """What it reads segments with; none where the generator's confidence alone decides."""
        return self._encoder

    def judge(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """What is known of each candidate of documents whose ids differ, but for what reviewers said of it."""
        return [known for known, _ in self._judged([candidates])]

    def _judged(self, documents: Sequence[Sequence[Candidate]]) -> list[tuple[Judgement, tuple[Evidence, ...]]]:
        candidates = [candidate for document in documents for candidate in document]
        plain = [
            Judgement(c.generator_confidence, c.greedy, margin)
            for document in documents
            for c, margin in zip(document, margins(document), strict=True)
        ]
        if self._encoder is None:
            return [(known, ()) for known in plain]
        encoded = self._encoder.encode(candidates)
        votes = np.zeros(len(candidates), dtype=np.float32)
        evidence: list[tuple[Evidence, ...]] = [()] * len(candidates)
        if self._knowledge is not None:
            for type_ in {c.type for c in candidates}:
                rows = [i for i, c in enumerate(candidates) if c.type == type_ and encoded.known[i]]
                found = self._knowledge.search(type_, encoded.embeddings[rows], self._config.neighbours)
                votes[rows] = vote(found.near)
                for i, row in enumerate(rows):
                    evidence[row] = self._evidence(found, type_, i)
        words = [0.0 if self._gazetteer is None else self._gazetteer.log_odds(c.type, c.text) for c in candidates]
        told = zip(plain, encoded.logits.tolist(), votes.tolist(), words, strict=True)
        known = [of._replace(head=head, vote=vote, words=by_words) for of, head, vote, by_words in told]
        return list(zip(known, evidence, strict=True))

    def _evidence(self, found: Found, type_: str, row: int) -> tuple[Evidence, ...]:
        evidence: list[Evidence] = []
        for column, similarity in enumerate(found.near.similarities[row].tolist()):
            if found.near.positions[row, column] < 0 or len(evidence) == self._config.evidence:
                break
            exemplar = found.exemplar(row, column)
            cosine = min(1.0, max(-1.0, similarity))
            evidence.append(Evidence(text=exemplar.text, type=type_, accepted=exemplar.accepted, similarity=cosine))
        return tuple(evidence)

    def tokens(self, candidates: Sequence[Candidate]) -> int:
        """About how many tokens the candidates of a document cost; batches are made by this."""
        if self._encoder is None:
            return 1
        return sum(map(self._encoder.tokens, {c.segment.text for c in candidates}))

    def select(self, documents: Sequence[Sequence[Candidate]]) -> list[Selected]:
        """The kept ones among the candidates of each document, in text order.

        Offsets are the document's. No span of a type comes twice and no two of a type cross. ``parent_id`` is left
        open: it depends on the entities of all types. The answer does not depend on the order of the candidates, nor
        on the other documents. What a reviewer said of a candidate or a near copy of it stands above all else.
        """
        state = self._refresh()
        judged = iter(self._judged(documents))
        answers = []
        for document in documents:
            scored = []
            for candidate in document:
                known, evidence = next(judged)
                ruling = None if self._reviews is None else self._reviews.ruling(candidate)
                if ruling is None:
                    probability = self._calibration.probability(candidate.type, known)
                    if probability >= self._calibration.threshold(candidate.type):
                        scored.append(Scored(candidate, probability, evidence))
                elif ruling:
                    scored.append(Scored(candidate, 1.0, evidence))
            answers.append(Selected(entities=keep(scored), exemplars=state))
        return answers

    def _refresh(self) -> str:
        """Takes exemplars and feedback that changed; names what there is, empty where there is nothing."""
        changes = None if self._reviews is None else self._reviews.refresh()
        if changes is not None and self._knowledge is not None and self._encoder is not None:
            self._knowledge.learn(changes, self._encoder.encode)
        return exemplars_state(self.basis().index, 0 if self._reviews is None else self._reviews.version)

    def basis(self) -> Basis:
        """What it decides by, after taking an index that changed."""
        index = ""
        if self._knowledge is not None and self._encoder is not None:
            self._knowledge.refresh()
            index = self._knowledge.state
        # All of them: a list of those that matter would one day lack one.
        return Basis(index=index, settings=self._config.model_dump_json())


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
