"""Fits the calibration of a generator on its candidates for a dev split, and measures calibration.

Platt scaling (Platt 1999) by Newton's method with a weak Gaussian prior: centred on no change for all types pooled, and
on the pooled fit for each single type, so that rare types borrow strength from the others. Thresholds maximise the F1
expected from the probabilities (Lipton et al. 2014); the labels would give the same with more noise. Deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shared.selection.calibration import Calibration, Judgement, Scaling, TypeCalibration

# A type with fewer candidates gets the pooled parameters: its own would be left to chance.
MIN_OBSERVATIONS = 30
# Strength of the prior, about one observation: enough to keep parameters finite for separable data.
PRIOR = 1.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observation:
    """A candidate of the dev split, and whether it is exactly a gold mention, boundaries and type."""

    type: str
    known: Judgement
    correct: bool


def fit(observations: Sequence[Observation], gold: Mapping[str, int]) -> Calibration:
    """The calibration of all types observed.

    ``gold``: the number of gold mentions per type, found or not, so that recall counts the missed ones. A type with
    fewer than ``MIN_OBSERVATIONS`` candidates, or without gold mentions, gets the pooled parameters. The order of the
    observations does not matter. Raises ValueError if a type has more correct candidates than gold mentions.
    """
    correct = Counter(o.type for o in observations if o.correct)
    for type_, n in sorted(correct.items()):
        if n > gold.get(type_, 0):
            raise ValueError(
                f"gold: {type_} has {gold.get(type_, 0)} mentions but {n} correct candidates; "
                "count the gold mentions of the same documents and give each span once"
            )
    pooled = _fit_type(observations, sum(gold.values()), TypeCalibration())
    types: dict[str, TypeCalibration] = {}
    for type_ in sorted({o.type for o in observations}):
        own = [o for o in observations if o.type == type_]
        enough = len(own) >= MIN_OBSERVATIONS and gold.get(type_, 0) > 0
        fitted = _fit_type(own, gold[type_], pooled) if enough else pooled
        types[type_] = fitted.model_copy(update={"fitted_on": len(own)})
    return Calibration(types=types)


def _fit_type(observations: Sequence[Observation], gold: int, prior: TypeCalibration) -> TypeCalibration:
    greedy = [o for o in observations if o.known.greedy]
    beyond = [o for o in observations if not o.known.greedy]
    scaling = {
        True: _platt(greedy, prior.greedy) if len(greedy) >= MIN_OBSERVATIONS else prior.greedy,
        False: _platt(beyond, prior.beyond) if len(beyond) >= MIN_OBSERVATIONS else prior.beyond,
    }
    probabilities = np.array([scaling[o.known.greedy].probability(o.known) for o in observations])
    return TypeCalibration(
        greedy=scaling[True],
        beyond=scaling[False],
        threshold=best_threshold(probabilities, gold),
        fitted_on=len(observations),
    )


def _platt(observations: Sequence[Observation], prior: Scaling) -> Scaling:
    """A logistic regression with non-negative factors, shrunk weakly towards the prior."""
    terms = np.array([o.known.terms for o in observations], dtype=np.float64)
    y = np.array([o.correct for o in observations], dtype=np.float64)
    # Summed in sorted order, so that the order of the observations cannot change the last digit.
    order = np.lexsort(np.vstack((y, terms.T[::-1])))
    design, y = np.column_stack((terms, np.ones_like(y)))[order], y[order]
    mean = np.array((*prior.factors, prior.intercept))
    used = [True, *(bool(term.any()) for term in terms.T[1:]), True]
    weights = np.zeros(len(mean))
    while True:
        weights[:] = 0.0
        weights[used] = _newton(design[:, used], y, mean[used])
        factors = weights[:-1]
        if factors.min() >= 0:
            slope, margin, head, vote, words, intercept = map(float, weights)
            return Scaling(slope=slope, margin=margin, head=head, vote=vote, words=words, intercept=intercept)
        used[int(factors.argmin())] = False


def _newton(design: Floats, y: Floats, mean: Floats) -> Floats:
    """The maximum a posteriori weights, by Newton's method with step halving."""

    def loss(w: Floats) -> float:
        z = design @ w
        return float(np.sum(np.logaddexp(0.0, z) - y * z) + PRIOR / 2 * np.sum((w - mean) ** 2))

    weights: Floats = mean.copy()
    for _ in range(100):
        p: Floats = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -500, 500)))
        gradient: Floats = design.T @ (p - y) + PRIOR * (weights - mean)
        hessian: Floats = (design * (p * (1 - p))[:, None]).T @ design + PRIOR * np.eye(len(weights))
        step: Floats = np.linalg.solve(hessian, gradient).astype(np.float64)
        if np.max(np.abs(step)) < 1e-9:
            break
        size, before = 1.0, loss(weights)
        while size > 1e-6 and loss(weights - size * step) > before:
            size /= 2
        weights = np.asarray(weights - size * step, dtype=np.float64)
    return weights


def best_threshold(probabilities: Floats, gold: int) -> float:
    """The threshold that maximises expected F1, which is half of that F1 (Lipton et al. 2014, arXiv 1402.1892).

    ``probabilities``: of the candidates; ``gold``: the number of mentions to find. 0.5 if there is nothing to expect.
    """
    p = np.sort(probabilities)[::-1]
    if gold == 0 or not p.any():
        return 0.5
    f1 = 2 * np.cumsum(p) / (np.arange(1, len(p) + 1) + gold)
    return min(1.0, float(f1.max()) / 2)


def expected_calibration_error(probabilities: Sequence[float], labels: Sequence[bool], bins: int = 15) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017), in 0..1.

    0 without candidates. Raises ValueError if the lengths differ.
    """
    found = reliability(probabilities, labels, bins)
    total = sum(each.size for each in found)
    return sum(each.size * abs(each.probability - each.correct) for each in found) / total if total else 0.0


class Bin(NamedTuple):
    """Candidates of similar probability: how many, their mean probability, and the share that is correct."""

    size: int
    probability: float
    correct: float


def reliability(probabilities: Sequence[float], labels: Sequence[bool], bins: int = 15) -> list[Bin]:
    """The non-empty ones of ``bins`` of equal width. Raises ValueError if the lengths differ."""
    if len(probabilities) != len(labels):
        raise ValueError(f"labels: {len(labels)} for {len(probabilities)} probabilities; give one per probability")
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    bin_of = np.clip((p * bins).astype(int), 0, bins - 1)
    return [
        Bin(int(inside.sum()), float(p[inside].mean()), float(y[inside].mean()))
        for number in range(bins)
        if (inside := bin_of == number).any()
    ]
