"""Scores: strict micro precision, recall and F1, on exact boundaries and type, at document offsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Span = tuple[int, int, str]  # start, end, canonical type


@dataclass
class Score:
    """Counts and what follows from them. A share of nothing is 0."""

    correct: int = 0
    predicted: int = 0
    gold: int = 0

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        return _harmonic(self.precision, self.recall)

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass
class NestedScore:
    """Mentions that lie inside another mention or around one.

    Precision over the predicted mentions that are nested among the predicted ones, recall over the gold mentions that
    are nested among the gold ones: a mention found without its neighbour counts for recall, not for precision.
    """

    right: int = 0
    predicted: int = 0
    found: int = 0
    gold: int = 0

    @property
    def precision(self) -> float:
        return self.right / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.found / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        return _harmonic(self.precision, self.recall)

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass
class Scores:
    """Scores of a corpus: all mentions, those of each type, and nested ones alone."""

    micro: Score = field(default_factory=Score)
    types: dict[str, Score] = field(default_factory=dict)
    nested: NestedScore = field(default_factory=NestedScore)
    documents: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "micro": self.micro.as_dict(),
            "types": {key: score.as_dict() for key, score in sorted(self.types.items())},
            "nested": self.nested.as_dict(),
            "documents": self.documents,
        }


def score(gold: Iterable[Sequence[Span]], predicted: Iterable[Sequence[Span]]) -> Scores:
    """Scores of predicted against gold mentions, document by document. A mention given twice counts once."""
    scores = Scores()
    for gold_spans, predicted_spans in zip(gold, predicted, strict=True):
        truth, said = set(gold_spans), set(predicted_spans)
        scores.documents += 1
        for spans, name in ((truth, "gold"), (said, "predicted"), (truth & said, "correct")):
            for _, _, type_ in spans:
                of_type = scores.types.setdefault(type_, Score())
                for counted in (scores.micro, of_type):
                    setattr(counted, name, getattr(counted, name) + 1)
        nested_truth, nested_said = nested(truth), nested(said)
        scores.nested.gold += len(nested_truth)
        scores.nested.found += len(nested_truth & said)
        scores.nested.predicted += len(nested_said)
        scores.nested.right += len(nested_said & truth)
    return scores


def nested(spans: Iterable[Span]) -> set[Span]:
    """The mentions that contain another one or lie inside one, of whatever type; the same stretch twice is neither."""
    ordered = sorted(set(spans), key=lambda s: (s[0], -s[1]))
    found: set[Span] = set()
    for i, outer in enumerate(ordered):
        for inner in ordered[i + 1 :]:
            if inner[0] >= outer[1]:
                break
            if inner[1] <= outer[1] and inner[:2] != outer[:2]:
                found |= {outer, inner}
    return found


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
