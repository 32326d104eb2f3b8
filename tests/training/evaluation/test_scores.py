from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.text.pieces import split
from training.evaluation.scores import LENGTHS, NEAR, Scores, nested, overlapping_pairs, score

TEXT = "the EGFR2 gene, 患者 a-b 3.5 mg x"  # letters, digits, CJK and signs: all kinds of pieces

spans = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from("ab")).map(lambda s: (s[0], s[0] + s[1], s[2])),
    max_size=12,
)
pairs = st.lists(st.tuples(spans, spans), max_size=4)


def total(pairs):
    return sum((score(TEXT, gold, said) for gold, said in pairs), Scores())


def overlap(a, b):
    return bool(set(range(a[0], a[1])) & set(range(b[0], b[1])))


def test_counts_by_hand():
    gold = [(0, 4, "a"), (0, 2, "a"), (6, 9, "b")]
    said = [(0, 4, "a"), (6, 8, "b"), (6, 9, "b"), (6, 9, "b")]
    scores = total([(gold, said), ([], [(1, 2, "a")])])
    assert (scores.micro.correct, scores.micro.predicted, scores.micro.gold) == (2, 4, 3)
    assert scores.micro.precision == pytest.approx(0.5)
    assert scores.micro.recall == pytest.approx(2 / 3)
    assert scores.micro.f1 == pytest.approx(4 / 7)
    assert (scores.types["b"].correct, scores.types["b"].predicted, scores.types["b"].gold) == (1, 2, 1)
    assert (scores.nested.gold, scores.nested.found) == (2, 1)
    assert (scores.nested.predicted, scores.nested.right) == (2, 1)
    assert scores.documents == 2


def test_correct_boundaries_with_a_wrong_type_only_count_as_boundaries():
    scores = score(TEXT, [(0, 4, "a")], [(0, 4, "b")])
    assert scores.micro.f1 == scores.overlaps.f1 == 0.0
    assert scores.boundaries.f1 == 1.0


def test_a_correct_type_with_wrong_boundaries_only_counts_as_an_overlap():
    scores = score(TEXT, [(0, 4, "a")], [(2, 6, "a"), (3, 5, "a")])
    assert scores.micro.f1 == scores.boundaries.f1 == 0.0
    assert (scores.overlaps.correct, scores.overlaps.predicted, scores.overlaps.gold) == (1, 2, 1)


def test_macro_is_the_mean_of_the_types_with_gold_mentions():
    scores = score(TEXT, [(0, 1, "a"), (1, 2, "b"), (2, 3, "b")], [(0, 1, "a"), (1, 2, "b"), (4, 5, "c")])
    assert scores.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert scores.as_dict()["macro"]["types"] == 2
    assert Scores().macro_f1 == 0.0


def test_lengths_are_pieces_in_any_language():
    gold = [(0, 3, "a"), (4, 9, "a"), (16, 18, "a"), (4, 14, "b"), (0, len(TEXT), "b")]
    scores = score(TEXT, gold, gold[:2])
    assert {name: (s.correct, s.gold) for name, s in scores.lengths.items()} == {
        "1": (1, 1),  # the
        "2": (1, 2),  # EGFR 2, 患 者
        "3-4": (0, 1),  # EGFR 2 gene
        "9+": (0, 1),
    }
    assert list(scores.as_dict()["lengths"]) == list(LENGTHS)


def test_errors_by_hand():
    gold = [(0, 4, "a"), (6, 9, "b"), (12, 14, "a"), (20, 22, "b")]
    said = [(0, 4, "b"), (6, 8, "b"), (13, 16, "b"), (17, 19, "a"), (8, 9, "b")]
    assert score(TEXT, gold, said).as_dict()["errors"] == {
        "predicted": {"type": 1, "boundary": 2, "boundary and type": 1, "spurious": 1},
        "gold": {"type": 1, "boundary": 1, "boundary and type": 1, "missed": 1},
    }


def test_a_type_error_takes_precedence_over_a_boundary_error():
    scores = score(TEXT, [(0, 4, "a"), (0, 6, "b")], [(0, 4, "b")])
    assert scores.errors.predicted == {"type": 1}
    assert scores.errors.gold == {"type": 1, "boundary": 1}


@given(spans, spans)
def test_every_error_is_of_exactly_one_kind(gold, said):
    truth, answers = set(gold), set(said)

    def expected(wrong, others, alone):
        """The definitions as four predicates, of which exactly one must hold."""
        counts = dict.fromkeys((*NEAR, alone), 0)
        for span in wrong:
            exact = any(o[:2] == span[:2] for o in others)
            same_type = any(overlap(o, span) and o[2] == span[2] for o in others)
            any_type = any(overlap(o, span) for o in others)
            holds = {
                "type": exact,
                "boundary": not exact and same_type,
                "boundary and type": not exact and not same_type and any_type,
                alone: not any_type,
            }
            assert sum(holds.values()) == 1
            counts[next(kind for kind, held in holds.items() if held)] += 1
        return counts

    scores = score(TEXT, gold, said)
    assert scores.as_dict()["errors"] == {
        "predicted": expected(answers - truth, truth, "spurious"),
        "gold": expected(truth - answers, answers, "missed"),
    }


@given(pairs)
def test_correct_mentions_and_errors_add_up(drawn):
    scores = total(drawn)
    kinds = scores.as_dict()["errors"]
    assert scores.micro.correct + sum(kinds["predicted"].values()) == scores.micro.predicted
    assert scores.micro.correct + sum(kinds["gold"].values()) == scores.micro.gold


@given(spans, spans)
def test_swapping_the_sides_swaps_the_errors(gold, said):
    there, back = score(TEXT, gold, said).errors, score(TEXT, said, gold).errors
    for kind in NEAR:
        assert (there.predicted[kind], there.gold[kind]) == (back.gold[kind], back.predicted[kind])
    assert (there.predicted["spurious"], there.gold["missed"]) == (back.gold["missed"], back.predicted["spurious"])


@given(st.lists(spans, max_size=4))
def test_gold_scored_against_itself_is_perfect(documents):
    scores = total([(d, d) for d in documents])
    perfect = 1.0 if any(documents) else 0.0
    assert scores.micro.f1 == scores.macro_f1 == scores.boundaries.f1 == scores.overlaps.f1 == perfect
    assert scores.nested.found == scores.nested.gold == scores.nested.right
    assert not scores.errors.predicted
    assert not scores.errors.gold


@given(pairs)
def test_types_and_lengths_add_up_to_micro(drawn):
    scores = total(drawn)
    for name in ("correct", "predicted", "gold"):
        whole = getattr(scores.micro, name)
        assert sum(getattr(s, name) for s in scores.types.values()) == whole
        assert sum(getattr(s, name) for s in scores.lengths.values()) == whole
    assert scores.lengths.keys() <= LENGTHS.keys()
    assert 0.0 <= scores.micro.f1 <= 1.0


@given(pairs)
def test_ignoring_types_or_boundaries_never_hurts(drawn):
    scores = total(drawn)
    for loose in (scores.boundaries, scores.overlaps):
        assert (loose.predicted, loose.gold) == (scores.micro.predicted, scores.micro.gold)
        assert scores.micro.correct <= loose.correct <= min(loose.predicted, loose.gold)


@given(spans, spans)
def test_order_and_duplicates_of_mentions_do_not_matter(gold, said):
    assert score(TEXT, gold, said) == score(TEXT, [*reversed(gold), *gold], sorted(said))


@given(st.integers(0, 20), st.integers(1, 10))
def test_a_mention_counts_in_the_bucket_of_its_pieces(start, size):
    (name,) = score(TEXT, [(start, start + size, "a")], []).lengths
    low, _, high = name.rstrip("+").partition("-")
    assert int(low) <= len(split(TEXT[start : start + size])) <= (int(high or low) if not name.endswith("+") else 99)


crowded = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)).map(lambda s: (s[0], s[0] + s[1], "a")), max_size=5)


@example([(0, 9, "a"), (1, 3, "a")], [(1, 2, "a"), (4, 5, "a")])  # the first to begin must not take the first it meets
@given(crowded, crowded)
def test_pairs_are_a_maximum_matching(some, others):
    def most(left, right):
        if not left:
            return 0
        first, rest = left[0], left[1:]
        with_first = (1 + most(rest, right[:i] + right[i + 1 :]) for i, o in enumerate(right) if overlap(first, o))
        return max(most(rest, right), *with_first, 0)

    assert overlapping_pairs(some, others) == most(some, others)


@given(spans)
def test_nested_agrees_with_checking_all_pairs(drawn):
    def inside(a, b):
        return b[0] <= a[0] and a[1] <= b[1] and a[:2] != b[:2]

    expected = {s for a, b in combinations(set(drawn), 2) if inside(a, b) or inside(b, a) for s in (a, b)}
    assert nested(drawn) == expected


def test_as_dict_has_the_strict_micro_f1():
    assert score(TEXT, [(0, 1, "a")], [(0, 1, "a")]).as_dict()["micro"]["f1"] == 1.0
