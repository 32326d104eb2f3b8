import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.selection.calibration import Calibration, Judgement, Scaling, logit
from training.selector.calibration import (
    MIN_OBSERVATIONS,
    Observation,
    best_threshold,
    expected_calibration_error,
    fit,
)


def observe(type_, n, *, slope, intercept, greedy=True, seed=0):
    """Candidates whose labels are drawn from a scaling of their confidence."""
    rng = random.Random(seed)
    truth = Scaling(slope=slope, intercept=intercept)
    confidences = [rng.betavariate(2, 1.2) for _ in range(n)]
    return [
        Observation(type_, Judgement(c, greedy), rng.random() < truth.probability(Judgement(c, greedy)))
        for c in confidences
    ]


def gold_of(observations, missed=0):
    return {t: n + missed for t, n in Counter(o.type for o in observations if o.correct).items()}


def error(calibration, observations):
    return expected_calibration_error(
        [calibration.probability(o.type, o.known) for o in observations],
        [o.correct for o in observations],
    )


def test_the_scaling_that_generated_the_labels_is_recovered():
    observations = observe("protein", 4000, slope=0.6, intercept=-0.8)
    fitted = fit(observations, gold_of(observations)).types["protein"]
    assert fitted.greedy.slope == pytest.approx(0.6, abs=0.1)
    assert fitted.greedy.intercept == pytest.approx(-0.8, abs=0.15)
    assert fitted.fitted_on == 4000


def test_fitting_lowers_the_calibration_error_on_other_data():
    observations = observe("protein", 2000, slope=0.5, intercept=-0.7)
    held_out = observe("protein", 2000, slope=0.5, intercept=-0.7, seed=1)
    assert error(fit(observations, gold_of(observations)), held_out) < error(Calibration.default(), held_out) / 2


def test_greedy_and_beyond_are_fitted_separately():
    observations = observe("protein", 2000, slope=1.0, intercept=1.0)
    observations += observe("protein", 2000, slope=1.0, intercept=-2.0, greedy=False, seed=1)
    fitted = fit(observations, gold_of(observations)).types["protein"]
    assert fitted.greedy.intercept == pytest.approx(1.0, abs=0.25)
    assert fitted.beyond.intercept == pytest.approx(-2.0, abs=0.25)


@pytest.mark.parametrize("term", ["margin", "head", "vote", "words"])
def test_informative_terms_get_weight_and_uninformative_ones_do_not(term):
    rng = random.Random(3)
    plain = observe("protein", 2000, slope=0.6, intercept=-0.8)
    telling = [
        Observation(o.type, o.known._replace(**{term: rng.gauss(2.0 if o.correct else -2.0, 2.0)}), o.correct)
        for o in plain
    ]
    against = [Observation(o.type, o.known._replace(**{term: -getattr(o.known, term)}), o.correct) for o in telling]
    idle = [Observation(o.type, o.known._replace(**{term: rng.gauss(0.0, 2.0)}), o.correct) for o in plain]
    factor = {
        name: getattr(fit(given, gold_of(plain)).types["protein"].greedy, term)
        for name, given in {"telling": telling, "against": against, "idle": idle, "absent": plain}.items()
    }
    # Of two normal distributions the log-odds are known: their distance over their variance.
    assert factor["telling"] == pytest.approx(1.0, abs=0.15)
    assert factor["against"] == factor["absent"] == 0.0
    assert factor["idle"] == pytest.approx(0.0, abs=0.05)


def test_a_rare_type_gets_the_pooled_parameters():
    common = observe("protein", 500, slope=0.6, intercept=-0.5)
    rare = observe("rna", MIN_OBSERVATIONS - 1, slope=3.0, intercept=2.0, seed=1)
    calibration = fit(common + rare, gold_of(common + rare))
    assert calibration.types["rna"].greedy.slope == pytest.approx(calibration.types["protein"].greedy.slope, abs=0.3)
    assert calibration.types["rna"].fitted_on == len(rare)
    assert calibration.of("cell_line") == Calibration.default().unfitted


def test_separable_and_one_sided_data_stay_finite():
    for correct in (lambda i: i >= 20, lambda i: True, lambda i: False):
        observations = [Observation("protein", Judgement(i / 40, i % 2 == 0), correct(i)) for i in range(41)]
        calibration = fit(observations, {"protein": 41})
        assert 0.0 <= calibration.threshold("protein") <= 1.0


def test_a_misleading_confidence_gets_no_weight():
    observations = [Observation("protein", Judgement(i / 200, True), i < 100) for i in range(200)]
    fitted = fit(observations, {"protein": 100}).types["protein"]
    assert fitted.greedy.slope == 0.0
    assert fitted.greedy.probability(Judgement(0.9, True)) == pytest.approx(0.5, abs=0.02)


def test_nothing_observed_gives_the_default():
    assert fit([], {"protein": 3}) == Calibration.default()


def test_a_type_without_gold_mentions_gets_the_pooled_parameters():
    observations = observe("protein", 200, slope=1, intercept=0)
    wrong = [Observation("rna", Judgement(0.9, True), False) for _ in range(50)]
    calibration = fit(observations + wrong, gold_of(observations))
    assert calibration.threshold("rna") < 1.0


@given(st.randoms(use_true_random=False))
def test_the_order_of_observations_does_not_matter(rng):
    observations = observe("protein", 80, slope=0.7, intercept=0.3)
    observations += observe("dna", 10, slope=0.7, intercept=0.3, greedy=False)
    gold = gold_of(observations, missed=5)
    shuffled = rng.sample(observations, len(observations))
    assert fit(shuffled, gold) == fit(observations, gold)


def test_more_hits_than_mentions_is_an_error():
    with pytest.raises(ValueError, match="protein has 1 mentions but 2 correct"):
        fit([Observation("protein", Judgement(0.9, True), True)] * 2, {"protein": 1})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 20))
def test_no_threshold_has_a_better_expected_f1(probabilities, missed):
    p = np.array(probabilities)
    gold = math.ceil(p.sum()) + missed

    def f1(threshold):
        kept = p >= threshold
        return 2 * p[kept].sum() / (kept.sum() + gold) if gold else 0.0

    best = best_threshold(p, gold)
    assert 0.0 <= best <= 1.0
    assert f1(best) >= max(map(f1, [0.0, *probabilities])) - 1e-9


def test_missed_mentions_lower_the_threshold():
    p = np.array([0.2, 0.4, 0.6, 0.8])
    assert best_threshold(p, 30) < best_threshold(p, 3) < 0.5
    assert best_threshold(p, 0) == best_threshold(np.zeros(3), 3) == 0.5


def test_expected_calibration_error():
    assert expected_calibration_error([], []) == 0.0
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0.0
    assert expected_calibration_error([0.7, 0.7], [True, False]) == pytest.approx(0.2)
    assert expected_calibration_error([0.05, 0.95], [True, False]) == pytest.approx(0.95)
    with pytest.raises(ValueError, match="labels: 1 for 2"):
        expected_calibration_error([0.5, 0.5], [True])


def test_logit_is_finite_everywhere():
    assert -20 < logit(0.0) < logit(0.5) == 0.0 < logit(1.0) < 20
