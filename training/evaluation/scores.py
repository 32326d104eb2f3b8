"""Scores of predicted against gold mentions, at document offsets.

The main measure is strict: a mention is correct if its boundaries and type are exact. The others show where a model
fails: on which types and lengths, on boundaries or types, and with which kinds of errors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from shared.text.pieces import split

if TYPE_CHECKING:
    from shared.messages import Extraction
    from training.data.corpora import Example

Span = tuple[int, int, str]  # start, end, canonical type

# Bins of mention lengths, each with its largest number of pieces.
LENGTHS = {"1": 1, "2": 2, "3-4": 4, "5-8": 8, "9+": math.inf}

# Errors of mentions that overlap one of the other side: all kinds but `spurious` and `missed`.
NEAR = ("type", "boundary", "boundary and type")


@dataclass
class Score:
    """Counts, and the scores that follow from them; 0 where the denominator is 0."""

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

    def __add__(self, other: Score) -> Score:
        return Score(self.correct + other.correct, self.predicted + other.predicted, self.gold + other.gold)


@dataclass
class NestedScore:
    """Scores of mentions that lie inside or around another mention.

    Precision is over predicted mentions that are nested among the predicted ones, recall over gold mentions that are
    nested among the gold ones: a nested mention found without its partner counts for recall, not for precision.
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

    def __add__(self, other: NestedScore) -> NestedScore:
        return NestedScore(
            self.right + other.right,
            self.predicted + other.predicted,
            self.found + other.found,
            self.gold + other.gold,
        )


@dataclass
class Errors:
    """The errors, each of exactly one kind.

    A predicted mention that is not gold is

    - ``type`` if a gold mention has exactly its span, with another type; else
    - ``boundary`` if it overlaps a gold mention of its type; else
    - ``boundary and type`` if it overlaps a gold mention of another type; else
    - ``spurious``.

    A gold mention that is not predicted is classified the same way with the sides swapped, the last kind being
    ``missed``. Spans overlap if they share a code point. The mention that an error overlaps may itself be correct: a
    wrongly predicted part of a mention that was also found is a boundary error.
    """

    predicted: Counter[str] = field(default_factory=Counter)
    gold: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, dict[str, int]]:
        return {
            "predicted": {kind: self.predicted[kind] for kind in (*NEAR, "spurious")},
            "gold": {kind: self.gold[kind] for kind in (*NEAR, "missed")},
        }

    def __add__(self, other: Errors) -> Errors:
        return Errors(self.predicted + other.predicted, self.gold + other.gold)


@dataclass
class Scores:
    """Scores of a document or, summed, of a corpus.

    ``micro``, ``types``, ``nested`` and ``lengths`` are strict. A mention's length is its number of pieces
    (:mod:`shared.text.pieces`) in either language; precision is over the predicted mentions of that length, recall over
    the gold ones. ``boundaries`` ignores types: a predicted mention is correct if a gold one has the same span, one to
    one. ``overlaps`` ignores boundaries: it is correct if it overlaps a gold mention of its type, in a maximum one to
    one matching. Neither is ever below ``micro``.
    """

    micro: Score = field(default_factory=Score)
    types: dict[str, Score] = field(default_factory=dict)
    nested: NestedScore = field(default_factory=NestedScore)
    boundaries: Score = field(default_factory=Score)
    overlaps: Score = field(default_factory=Score)
    lengths: dict[str, Score] = field(default_factory=dict)
    errors: Errors = field(default_factory=Errors)
    documents: int = 0

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the types that have gold mentions; 0 if none has."""
        found = [s.f1 for s in self.types.values() if s.gold]
        return sum(found) / len(found) if found else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "micro": self.micro.as_dict(),
            "macro": {"f1": self.macro_f1, "types": sum(s.gold > 0 for s in self.types.values())},
            "types": {key: score.as_dict() for key, score in sorted(self.types.items())},
            "nested": self.nested.as_dict(),
            "boundary_only": self.boundaries.as_dict(),
            "type_only": self.overlaps.as_dict(),
            "lengths": {name: self.lengths.get(name, Score()).as_dict() for name in LENGTHS},
            "errors": self.errors.as_dict(),
            "documents": self.documents,
        }

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            micro=self.micro + other.micro,
            types=_merged(self.types, other.types),
            nested=self.nested + other.nested,
            boundaries=self.boundaries + other.boundaries,
            overlaps=self.overlaps + other.overlaps,
            lengths=_merged(self.lengths, other.lengths),
            errors=self.errors + other.errors,
            documents=self.documents + other.documents,
        )


def score(text: str, gold: Iterable[Span], predicted: Iterable[Span]) -> Scores:
    """Scores of one document; ``sum(…, Scores())`` gives those of a corpus.

    Spans must lie within the text and not be empty. Duplicate mentions count once.
    """
    truth, said = set(gold), set(predicted)
    scores = Scores(documents=1)
    for spans, name in ((truth, "gold"), (said, "predicted"), (truth & said, "correct")):
        for start, end, type_ in spans:
            by_type = scores.types.setdefault(type_, Score())
            by_length = scores.lengths.setdefault(_length(text[start:end]), Score())
            for counted in (scores.micro, by_type, by_length):
                setattr(counted, name, getattr(counted, name) + 1)
    nested_truth, nested_said = nested(truth), nested(said)
    scores.nested = NestedScore(
        right=len(nested_said & truth),
        predicted=len(nested_said),
        found=len(nested_truth & said),
        gold=len(nested_truth),
    )
    same_span = Counter(s[:2] for s in truth) & Counter(s[:2] for s in said)
    scores.boundaries = Score(same_span.total(), len(said), len(truth))
    pairs = sum(
        overlapping_pairs([s for s in truth if s[2] == type_], [s for s in said if s[2] == type_])
        for type_ in scores.types
    )
    scores.overlaps = Score(pairs, len(said), len(truth))
    scores.errors = Errors(
        predicted=Counter(_error(span, truth) or "spurious" for span in said - truth),
        gold=Counter(_error(span, said) or "missed" for span in truth - said),
    )
    return scores


def score_all(examples: Sequence[Example], extractions: Sequence[Extraction]) -> list[Scores]:
    """The scores of each text of a corpus. Raises ValueError if the number of extractions differs."""
    return [
        score(
            example.text,
            [(m.start, m.end, m.type) for m in example.mentions],
            [(e.start, e.end, e.type) for e in extraction.entities],
        )
        for example, extraction in zip(examples, extractions, strict=True)
    ]


def nested(spans: Iterable[Span]) -> set[Span]:
    """The mentions that contain or lie inside another one, of any type; two with the same span are not nested."""
    ordered = sorted(set(spans), key=lambda s: (s[0], -s[1]))
    found: set[Span] = set()
    for i, outer in enumerate(ordered):
        for inner in ordered[i + 1 :]:
            if inner[0] >= outer[1]:
                break
            if inner[1] <= outer[1] and inner[:2] != outer[:2]:
                found |= {outer, inner}
    return found


def overlapping_pairs(some: Iterable[Span], others: Iterable[Span]) -> int:
    """The size of a maximum matching between overlapping spans of two sides.

    Greedily matching the span that ends first with the first-ending span that overlaps it is optimal: any free span
    that overlaps this partner also overlaps every later one.
    """
    waiting = sorted([(end, start, 0) for start, end, _ in some] + [(end, start, 1) for start, end, _ in others])
    pairs = 0
    while waiting:
        end, start, side = waiting.pop(0)
        partner = next((i for i, w in enumerate(waiting) if w[2] != side and w[1] < end and start < w[0]), None)
        if partner is not None:
            waiting.pop(partner)
            pairs += 1
    return pairs


def _error(span: Span, others: Iterable[Span]) -> str | None:
    """The kind of error (:class:`Errors`) of a span that is not among the others; None if it overlaps none of them."""
    start, end, type_ = span
    near = [other for other in others if other[0] < end and start < other[1]]
    if any(other[:2] == (start, end) for other in near):
        return "type"
    if any(other[2] == type_ for other in near):
        return "boundary"
    return "boundary and type" if near else None


def _length(mention: str) -> str:
    pieces = len(split(mention))
    return next(name for name, most in LENGTHS.items() if pieces <= most)


def _merged(some: Mapping[str, Score], others: Mapping[str, Score]) -> dict[str, Score]:
    return {key: some.get(key, Score()) + others.get(key, Score()) for key in {**some, **others}}


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
