"""Statistical significance: confidence intervals of one run, and comparison of two runs on the same texts.

Intervals are 95 % percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13). Documents are resampled,
because mentions of one document are not independent; for two runs the resamples are paired. The p value is that of the
two-sided approximate randomisation test (Noreen 1989; Yeh 2000): how often a difference at least as large arises when
each document's outputs are randomly swapped between the runs. It is not corrected for multiple comparisons. Both apply
to texts like those of the corpus, not to other texts or other training seeds.

Scores are functions of counts per document, so resampling is a matrix product. The same seed gives the same numbers.
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

# Resamples times documents in memory at once: 32 MB.
_CELLS = 2**22
# Differences of F1 this small count as equal; summing in another order changes them by less.
_SAME = 1e-12

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher one run's F1 is than another's, and the probability of such a difference by chance."""

    value: float
    interval: Interval | None
    p: float


def intervals(
    documents: Sequence[Scores], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Interval | None]:
    """The intervals of ``micro.precision``, ``micro.recall``, ``micro.f1``, ``macro.f1``, ``nested.f1`` and
    ``types.<key>.f1``, from the scores of at least one document.

    A resample without gold mentions of a type is left out of the interval of that type's F1; its macro F1 is over the
    other types. There is no interval if fewer than two documents have gold mentions of the type: resampling then cannot
    tell how documents differ. Below some twenty such documents, percentile intervals are too narrow.
    """
    types = _types(documents)
    counts = _counts(documents, types)
    drawn = _measures(_products(_drawn(len(counts), seed), counts, resamples), types)
    single = _measures(counts, types)
    return {name: _interval(values, single[name]) for name, values in drawn.items()}


def compare(
    documents: Sequence[Scores], others: Sequence[Scores], *, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, Difference]:
    """The differences in F1 between two runs on the same documents, by measure as in :func:`intervals`.

    Measures without gold mentions are left out. Raises ValueError if the gold mentions of the runs differ.
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
            # The actual assignment counts as one: a p of 0 would claim more than was tried.
            as_large = 1 + np.count_nonzero(np.abs(by_chance[name]) >= abs(value) - _SAME)
            interval = _interval(resampled[name], single[name])
            found[name] = Difference(float(value), interval, float(as_large / (resamples + 1)))
    return found


def _types(documents: Iterable[Scores]) -> list[str]:
    return sorted({type_ for document in documents for type_ in document.types})


def _counts(documents: Sequence[Scores], types: Sequence[str]) -> Floats:
    """A row per document: correct, predicted and gold by type; right, predicted, found and gold of nested mentions."""
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
    """The measures of each row of counts; NaN where a row has no gold mentions for the measure."""
    by_type = counts[:, :-4].reshape(len(counts), len(types), 3)
    correct, predicted, gold = np.moveaxis(by_type, 2, 0)
    f1 = _share(2 * correct, predicted + gold)
    all_correct, all_predicted, all_gold = by_type.sum(axis=1).T
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
    return {name: np.where(gold_count > 0, values, np.nan) for name, (values, gold_count) in measured.items()}


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _interval(drawn: Floats, single: Floats) -> Interval | None:
    """The percentile interval of resampled values, if at least two single documents can be measured."""
    drawn = drawn[np.isfinite(drawn)]
    if np.count_nonzero(np.isfinite(single)) < 2 or not drawn.size:
        return None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _drawn(documents: int, seed: int) -> Callable[[int], Floats]:
    """How often each document is drawn with replacement: one row per resample."""
    random = np.random.default_rng(seed)
    return lambda rows: random.multinomial(documents, [1 / documents] * documents, size=rows).astype(np.float64)


def _swapped(documents: int, seed: int) -> Callable[[int], Floats]:
    """Whether each document's outputs are swapped: one row per permutation."""
    random = np.random.default_rng(seed)
    return lambda rows: (random.random((rows, documents)) < 0.5).astype(np.float64)


def _products(weights: Callable[[int], Floats], counts: Floats, resamples: int) -> Floats:
    """Weights times counts, one row per resample. Sums of counts are integers, hence exact."""
    most = max(1, _CELLS // max(1, len(counts)))
    sizes = [min(most, resamples - done) for done in range(0, resamples, most)]
    return np.concatenate([weights(size) @ counts for size in sizes])
