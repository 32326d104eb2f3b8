"""Selection: candidates of documents in, kept entities out.

The calibration of its type turns what is known of a candidate into a probability: the generator's confidence and its
margin over overlapping spans and, with a span encoder, the log-odds of its head, the vote of the nearest labelled
exemplars and the log-odds of its words in the gazetteer. A reviewer's feedback on the candidate, or on a near copy of
it, overrides all of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from services.selection.config import SelectionConfig
from services.selection.feedback_overrides import FeedbackOverrides
from services.selection.overlaps import Scored, keep, margins
from shared.messages import Basis, Candidate, Evidence, Selected, exemplars_state
from shared.selection.calibration import Calibration, Judgement
from shared.selection.selector_folder import index_folder, selector_folder
from shared.settings import Settings

if TYPE_CHECKING:
    from services.selection.exemplar_pool import ExemplarPool, Nearest
    from shared.backends.feedback_store import FeedbackStore
    from shared.selection.exemplars.snapshot import Neighbours
    from shared.selection.gazetteer import Gazetteer
    from shared.selection.span_encoder import SpanEncoder

# Temperature of the vote: cosine distance at which the weight of an exemplar has fallen to 1/e.
_TEMPERATURE = 0.1


class Selector:
    """Decides which candidates are mentions. Not thread-safe: one caller at a time."""

    def __init__(
        self,
        calibration: Calibration,
        encoder: SpanEncoder | None = None,
        exemplars: ExemplarPool | None = None,
        overrides: FeedbackOverrides | None = None,
        config: SelectionConfig | None = None,
        gazetteer: Gazetteer | None = None,
    ) -> None:
        """Without an encoder, the generator's confidence alone decides; without a pool, no exemplars vote."""
        self._calibration = calibration
        self._encoder = encoder
        self._exemplars = exemplars
        self._overrides = overrides
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
        """The selector that the settings name, with its index if it has one; without one, the adapter's calibration.

        ``feedback``: the store whose feedback applies; None applies none.
        """
        folder = selector_folder(settings)
        config = config or SelectionConfig()
        calibration = calibration or Calibration.for_settings(settings)
        overrides = None if feedback is None else FeedbackOverrides(feedback, config.near_copy)
        if folder is None:
            return cls(calibration, overrides=overrides, config=config)
        from services.selection.exemplar_pool import ExemplarPool
        from shared.selection.gazetteer import Gazetteer
        from shared.selection.span_encoder import SpanEncoder, encoder_revision

        encoder = SpanEncoder.load(settings, folder, config.batch_tokens, config.dtype)
        revision = encoder_revision(settings, folder)
        exemplars = ExemplarPool(encoder.size, revision, index_folder(folder), settings.cache)
        return cls(calibration, encoder, exemplars, overrides, config, Gazetteer.load(folder))

    @property
    def encoder(self) -> SpanEncoder | None:
        """The span encoder; None if the generator's confidence alone decides."""
        return self._encoder

    def judge(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """What is known of each candidate, feedback aside. Documents are told apart by their ids."""
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
        if self._exemplars is not None:
            for type_ in {c.type for c in candidates}:
                rows = [i for i, c in enumerate(candidates) if c.type == type_ and encoded.known[i]]
                nearest = self._exemplars.search(type_, encoded.embeddings[rows], self._config.neighbours)
                votes[rows] = vote(nearest.neighbours)
                for i, row in enumerate(rows):
                    evidence[row] = self._evidence(nearest, type_, i)
        words = [0.0 if self._gazetteer is None else self._gazetteer.log_odds(c.type, c.text) for c in candidates]
        features = zip(plain, encoded.logits.tolist(), votes.tolist(), words, strict=True)
        known = [each._replace(head=head, vote=vote, words=odds) for each, head, vote, odds in features]
        return list(zip(known, evidence, strict=True))

    def _evidence(self, nearest: Nearest, type_: str, row: int) -> tuple[Evidence, ...]:
        evidence: list[Evidence] = []
        for column, similarity in enumerate(nearest.neighbours.similarities[row].tolist()):
            if nearest.neighbours.positions[row, column] < 0 or len(evidence) == self._config.evidence:
                break
            exemplar = nearest.exemplar(row, column)
            cosine = min(1.0, max(-1.0, similarity))
            evidence.append(Evidence(text=exemplar.text, type=type_, accepted=exemplar.accepted, similarity=cosine))
        return tuple(evidence)

    def tokens(self, candidates: Sequence[Candidate]) -> int:
        """Estimated cost in tokens of a document's candidates, for batching."""
        if self._encoder is None:
            return 1
        return sum(map(self._encoder.tokens, {c.segment.text for c in candidates}))

    def select(self, documents: Sequence[Sequence[Candidate]]) -> list[Selected]:
        """The entities among the candidates of each document, in text order, at document offsets.

        Of one type, no span occurs twice and no two spans cross. ``parent_id`` is not set: it depends on the entities
        of all types. The result depends neither on the order of the candidates nor on the other documents.
        """
        state = self._refresh()
        judged = iter(self._judged(documents))
        answers = []
        for document in documents:
            scored = []
            for candidate in document:
                known, evidence = next(judged)
                accepted = None if self._overrides is None else self._overrides.accepted(candidate)
                if accepted is None:
                    probability = self._calibration.probability(candidate.type, known)
                    if probability >= self._calibration.threshold(candidate.type):
                        scored.append(Scored(candidate, probability, evidence))
                elif accepted:
                    scored.append(Scored(candidate, 1.0, evidence))
            answers.append(Selected(entities=keep(scored), exemplars=state))
        return answers

    def _refresh(self) -> str:
        """Takes over exemplars and feedback that changed; identifies both, empty if there are none."""
        changes = None if self._overrides is None else self._overrides.refresh()
        if changes is not None and self._exemplars is not None and self._encoder is not None:
            self._exemplars.update(changes, self._encoder.encode)
        return exemplars_state(self.basis().index, 0 if self._overrides is None else self._overrides.version)

    def basis(self) -> Basis:
        """What decisions rest on, after taking over an index that changed."""
        index = ""
        if self._exemplars is not None and self._encoder is not None:
            self._exemplars.refresh()
            index = self._exemplars.index_digest
        # All settings: a list of those that matter would one day lack one.
        return Basis(index=index, settings=self._config.model_dump_json())


def vote(near: Neighbours) -> NDArray[np.float32]:
    """The vote of each row's neighbours, from -1 to 1, weighted by similarity; 0 without neighbours. Shape (n,)."""
    present = near.positions >= 0
    similarities = np.where(present, near.similarities, -np.inf).astype(np.float64)
    nearest = similarities.max(axis=1, initial=-1.0, keepdims=True)
    weights = np.exp((similarities - nearest) / _TEMPERATURE)  # 0 for padding
    total = weights.sum(axis=1)
    signed = np.where(near.accepted, weights, -weights).sum(axis=1)
    # Rounding can push a unanimous vote slightly beyond 1.
    votes: NDArray[np.float64] = np.divide(signed, total, out=np.zeros_like(signed), where=total > 0)
    return votes.clip(-1.0, 1.0).astype(np.float32)
