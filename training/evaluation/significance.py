"""How far scores would differ on other texts: intervals of one run, and the comparison of two runs on the same texts.

Intervals are 95 % percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13). Documents are what is
resampled, because mentions of one document are not independent; two runs are resampled alike (paired). The p value is
that of the two-sided approximate randomisation test (Noreen 1989; Yeh 2000): how often a difference at least as large
arises where each document's outputs are swapped between the runs by a coin. It is not corrected for the number of
measures that are looked at. Both say something about texts like those of the corpus and nothing about others, or about
other seeds of training.

Everything rests on the counts of each document, so that a resample is a row of a matrix product. The same seed gives
the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.evaluation.scores import Score, Scores

LEVEL = 0.95
RESAMPLES = 1000
SEED = 13

# Resamples times documents that are held at once: 32 MB.
_CELLS = 2**22
# Differences of F1 that are this close are one; sums in another order differ by less.
_SAME = 1e-12

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Where a value lies with 95 % confidence."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher a run's F1 is than another's, and the probability of as large a difference by chance."""

    value: float
    interval: Interval | None
    p: float


def intervals(
    documents: Sequence[Scores], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Interval | None]:
    """The intervals of ``micro.precision``, ``micro.recall``, ``micro.f1``, ``macro.f1``, ``nested.f1`` and
    ``types.<key>.f1``, from the scores of each document; there must be one at least.

    A resample without gold mentions of a type says nothing of the type's F1 and is left out of its interval; its macro
    F1 is that of the other types. Where fewer than two documents have gold mentions of it there is no interval:
    resampling cannot tell how documents differ. Below some twenty such documents percentile intervals are too narrow.
    """
    types = _types(documents)
    counts = _counts(documents, types)
    drawn = _measures(_products(_drawn(len(counts), seed), counts, resamples), types)
    single = _measures(counts, types)
    return {name: _interval(values, single[name]) for name, values in drawn.items()}


def compare(
    documents: Sequence[Scores], others: Sequence[Scores], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Difference]:
    """How the F1 of a run differs from that of another run on the same documents, by measure as in :func:`intervals`.

    Measures without gold mentions are left out. ValueError where the runs have not the same gold mentions.
    """
    types = _types([*documents, *others])
    counts, other_counts = _counts(documents, types), _counts(others, types)
    gold = [*range(2, 3 * len(types), 3), -1]
    if counts.shape != other_counts.shape or (counts[:, gold] != other_counts[:, gold]).any():
        raise ValueError("others: not the scores of the same documents; score both runs on the same corpus")

    def differences(ours: Floats, theirs: Floats) -> dict[str, Floats]:
        measured, others_measured = _measures(ours, types), _measures(theirs, types)
        return {name: measured[name] - others_measured[name] for name in measured if name.endswith(".f1")}

    totals, other_totals = counts.sum(axis=0, keepdims=True), other_counts.sum(axis=0, keepdims=True)
    single = _measures(counts, types)
    drawn = _products(_drawn(len(counts), seed), np.hstack([counts, other_counts]), resamples)
    resampled = differences(*np.hsplit(drawn, 2))
    moved = _products(_swapped(len(counts), seed), other_counts - counts, resamples)
    by_chance = differences(totals + moved, other_totals - moved)
    found: dict[str, Difference] = {}
    for name, (value,) in differences(totals, other_totals).items():
        if np.isfinite(value):
            # The runs as they are count as one arrangement: a p of 0 would claim more than was tried.
            as_large = 1 + np.count_nonzero(np.abs(by_chance[name]) >= abs(value) - _SAME)
            interval = _interval(resampled[name], single[name])
            found[name] = Difference(float(value), interval, float(as_large / (resamples + 1)))
    return found


def _types(documents: Iterable[Scores]) -> list[str]:
    return sorted({type_ for document in documents for type_ in document.types})


def _counts(documents: Sequence[Scores], types: Sequence[str]) -> Floats:
    """A row a document: correct, predicted and gold of each type; right, predicted, found and gold of nested ones."""
    none = Score()
    rows = [
        [
            *(n for s in (d.types.get(type_, none) for type_ in types) for n in (s.correct, s.predicted, s.gold)),
            *(d.nested.right, d.nested.predicted, d.nested.found, d.nested.gold),
        ]
        for d in documents
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 3 * len(types) + 4)


def _measures(counts: Floats, types: Sequence[str]) -> dict[str, Floats]:
    """The measures of each row of counts; not a number where it has no gold mention of what is measured."""
    of_types = counts[:, :-4].reshape(len(counts), len(types), 3)
    correct, predicted, gold = np.moveaxis(of_types, 2, 0)
    f1 = _share(2 * correct, predicted + gold)
    all_correct, all_predicted, all_gold = of_types.sum(axis=1).T
    right, nested_predicted, found, nested_gold = counts[:, -4:].T
    precision, recall = _share(right, nested_predicted), _share(found, nested_gold)
    measured = {
        "micro.precision": (_share(all_correct, all_predicted), all_gold),
        "micro.recall": (_share(all_correct, all_gold), all_gold),
        "micro.f1": (_share(2 * all_correct, all_predicted + all_gold), all_gold),
        "macro.f1": (_share(np.where(gold > 0, f1, 0.0).sum(axis=1), (gold > 0).sum(axis=1)), all_gold),
        "nested.f1": (_share(2 * precision * recall, precision + recall), nested_gold),
        **{f"types.{type_}.f1": (f1[:, i], gold[:, i]) for i, type_ in enumerate(types)},
    }
    return {name: np.where(of > 0, values, np.nan) for name, (values, of) in measured.items()}


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _interval(drawn: Floats, single: Floats) -> Interval | None:
    """The interval of drawn values, if at least two of the single documents can be measured."""
    drawn = drawn[np.isfinite(drawn)]
    if np.count_nonzero(np.isfinite(single)) < 2 or not drawn.size:
        return None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _drawn(documents: int, seed: int) -> Callable[[int], Floats]:
    """How often each document is drawn, with replacement: one row a resample."""
    random = np.random.default_rng(seed)
    return lambda rows: random.multinomial(documents, [1 / documents] * documents, size=rows).astype(np.float64)


def _swapped(documents: int, seed: int) -> Callable[[int], Floats]:
    """Whether each document's outputs are swapped: one row an arrangement."""
    random = np.random.default_rng(seed)
    return lambda rows: (random.random((rows, documents)) < 0.5).astype(np.float64)


def _products(weights: Callable[[int], Floats], counts: Floats, resamples: int) -> Floats:
    """Weights times counts, one row a resample. Sums of counts are whole numbers, hence exact."""
    most = max(1, _CELLS // max(1, len(counts)))
    sizes = [min(most, resamples - done) for done in range(0, resamples, most)]
    return np.concatenate([weights(size) @ counts for size in sizes])
