from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation import significance
from training.evaluation.scores import Scores, score
from training.evaluation.significance import compare, intervals

TEXT = "x " * 40

spans = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from("ab")).map(lambda s: (s[0], s[0] + s[1], s[2])),
    max_size=6,
)
triples = st.lists(st.tuples(spans, spans, spans), min_size=1, max_size=5)


def run(documents, seed, *, recall=0.6, noise=2.0):
    """Scores of documents with gold mentions of two types, each found with probability ``recall``, plus noise.

    The gold mentions depend only on the number of documents, so runs with other seeds share their documents.
    """
    gold = np.random.default_rng(documents)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(documents):
        truth = [(2 * int(i), 2 * int(i) + 1, "ab"[int(i) % 2]) for i in gold.permutation(30)[: gold.integers(0, 9)]]
        said = [span for span in truth if random.random() < recall]
        said += [(2 * int(i), 2 * int(i) + 1, "ab"[int(i) % 2]) for i in random.integers(30, 40, random.poisson(noise))]
        found.append(score(TEXT, truth, said))
    return found


def total(documents):
    return sum(documents, Scores())


def test_intervals_contain_the_scores_and_are_reproducible():
    documents = run(60, 1)
    scores, found = total(documents), intervals(documents)
    values = {
        "micro.precision": scores.micro.precision,
        "micro.recall": scores.micro.recall,
        "micro.f1": scores.micro.f1,
        "macro.f1": scores.macro_f1,
        "types.a.f1": scores.types["a"].f1,
        "types.b.f1": scores.types["b"].f1,
    }
    assert found.keys() == values.keys() | {"nested.f1"}
    assert found["nested.f1"] is None  # nothing is nested here
    for name, value in values.items():
        assert found[name].low < value < found[name].high
    assert intervals(documents) == found
    assert intervals(documents, seed=2) != found


def test_the_interval_for_independent_mentions_agrees_with_theory():
    documents = [score(TEXT, [(0, 1, "a")], [(0, 1, "a")] if right else []) for right in (True, False) * 200]
    half = 1.96 * np.sqrt(0.5 * 0.5 / 400)
    assert intervals(documents)["micro.recall"] == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)


def test_more_documents_give_narrower_intervals():
    def width(documents):
        interval = intervals(documents)["micro.f1"]
        return interval.high - interval.low

    # A standard error falls with the square root of the number: here to a quarter.
    assert width(run(640, 1)) == pytest.approx(width(run(40, 1)) / 4, rel=0.4)


def test_about_nineteen_of_twenty_intervals_contain_the_truth():
    population = run(2000, 1)
    truth = total(population).micro.f1
    random = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        interval = intervals([population[i] for i in random.integers(2000, size=50)], resamples=200)["micro.f1"]
        held += interval.low <= truth <= interval.high
    assert 88 <= held <= 99


def test_documents_are_resampled_whole():
    """Copies of mentions within documents must not narrow an interval, unlike copies of documents."""
    few = [score(TEXT, [(0, 1, "a")], [(0, 1, "a")] if right else []) for right in (True, False) * 10]
    many = [
        score(TEXT, [(i, i + 1, "a") for i in range(30)], [(i, i + 1, "a") for i in range(30)] if right else [])
        for right in (True, False) * 10
    ]
    assert intervals(few)["micro.recall"] == pytest.approx(intervals(many)["micro.recall"])


def test_a_type_of_a_single_document_gets_no_interval():
    documents = [score(TEXT, [(0, 1, "a"), (2, 3, "b")], [(0, 1, "a")]), score(TEXT, [(0, 1, "a")], [(0, 1, "c")])]
    found = intervals(documents)
    assert found["micro.f1"] is not None
    assert found["types.a.f1"] is not None
    assert found["types.b.f1"] is None
    assert found["types.c.f1"] is None
    assert set(intervals(documents[:1]).values()) == {None}


def test_resamples_without_gold_mentions_do_not_pull_a_type_down():
    rare = [score(TEXT, [(0, 1, "a")], [(0, 1, "a")])] * 2
    others = [score(TEXT, [(0, 1, "b")], [(0, 1, "b")])] * 20
    assert intervals(rare + others)["types.a.f1"] == (1.0, 1.0)


def test_a_run_does_not_differ_from_itself():
    documents = run(40, 1)
    for difference in compare(documents, documents).values():
        assert (difference.value, difference.interval, difference.p) == (0.0, (0.0, 0.0), 1.0)


def test_a_clearly_better_run_is_found():
    difference = compare(run(100, 1, recall=0.8), run(100, 2, recall=0.5))["micro.f1"]
    assert difference.value > 0.1
    assert difference.interval.low > 0
    assert difference.p == pytest.approx(1 / 1001)


@pytest.mark.parametrize("seed", range(4))
def test_p_is_close_to_that_of_all_permutations(seed):
    ours, theirs = run(8, seed, recall=0.8), run(8, seed + 10)
    observed = abs(total(ours).micro.f1 - total(theirs).micro.f1)
    as_large = 0
    for swaps in product((False, True), repeat=len(ours)):
        first = [b if swap else a for a, b, swap in zip(ours, theirs, swaps, strict=True)]
        second = [a if swap else b for a, b, swap in zip(ours, theirs, swaps, strict=True)]
        as_large += abs(total(first).micro.f1 - total(second).micro.f1) >= observed - 1e-12
    assert compare(ours, theirs, resamples=4000)["micro.f1"].p == pytest.approx(as_large / 2**8, abs=0.03)


def test_pairing_narrows_the_interval_of_similar_runs():
    ours, other = run(80, 1), run(80, 1)
    other[:4] = run(80, 2)[:4]  # all but four outputs are the same
    single, paired = intervals(ours)["micro.f1"], compare(ours, other)["micro.f1"].interval
    assert paired.high - paired.low < (single.high - single.low) / 2


def test_similar_runs_rarely_differ_significantly():
    p = [compare(run(40, 2 * i), run(40, 2 * i + 1), resamples=200)["micro.f1"].p for i in range(60)]
    assert sum(value <= 0.05 for value in p) <= 8  # 3 expected; eight or fewer in 997 of a thousand cases
    assert 0.3 < np.mean(p) < 0.7  # uniform, with a standard error of 0.04


def test_swapping_the_runs_flips_the_signs():
    ours, theirs = run(40, 1), run(40, 2, recall=0.5)
    there, back = compare(ours, theirs), compare(theirs, ours)
    for name, difference in there.items():
        assert difference.value == pytest.approx(-back[name].value)
        assert difference.p == back[name].p
        if difference.interval is not None:
            assert difference.interval == pytest.approx((-back[name].interval.high, -back[name].interval.low))


@settings(max_examples=30)
@given(triples)
def test_differences_are_those_of_the_scores(drawn):
    ours = [score(TEXT, gold, said) for gold, said, _ in drawn]
    theirs = [score(TEXT, gold, said) for gold, _, said in drawn]
    a, b = total(ours), total(theirs)
    found = compare(ours, theirs, resamples=20)
    expected = {
        **({"micro.f1": a.micro.f1 - b.micro.f1, "macro.f1": a.macro_f1 - b.macro_f1} if a.micro.gold else {}),
        **({"nested.f1": a.nested.f1 - b.nested.f1} if a.nested.gold else {}),
        **{f"types.{key}.f1": s.f1 - (b.types[key].f1) for key, s in a.types.items() if s.gold},
    }
    assert {name: d.value for name, d in found.items()} == pytest.approx(expected)
    for difference in found.values():
        assert 1 / 21 <= difference.p <= 1.0
        if difference.interval is not None:
            assert -1.0 <= difference.interval.low <= difference.interval.high <= 1.0


@settings(max_examples=30)
@given(triples)
def test_intervals_are_shares(drawn):
    for interval in intervals([score(TEXT, gold, said) for gold, said, _ in drawn], resamples=20).values():
        assert interval is None or 0.0 <= interval.low <= interval.high <= 1.0


def test_few_rows_at_once_give_the_same_numbers(monkeypatch):
    ours, theirs = run(20, 1), run(20, 2)
    at_once = intervals(ours), compare(ours, theirs)
    monkeypatch.setattr(significance, "_CELLS", 60)
    assert (intervals(ours), compare(ours, theirs)) == at_once


def test_runs_on_other_documents_are_refused():
    with pytest.raises(ValueError, match="same documents"):
        compare(run(10, 1), run(11, 1))
    with pytest.raises(ValueError, match="same documents"):
        compare([score(TEXT, [(0, 1, "a")], [])], [score(TEXT, [(0, 1, "b")], [])])
