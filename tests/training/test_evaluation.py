import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation import nested, score

spans = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from("ab")).map(lambda s: (s[0], s[0] + s[1], s[2])),
    max_size=12,
)


def test_counts_by_hand():
    gold = [[(0, 4, "a"), (0, 2, "a"), (6, 9, "b")], []]
    said = [[(0, 4, "a"), (6, 8, "b"), (6, 9, "b"), (6, 9, "b")], [(1, 2, "a")]]
    scores = score(gold, said)
    assert (scores.micro.correct, scores.micro.predicted, scores.micro.gold) == (2, 4, 3)
    assert scores.micro.precision == pytest.approx(0.5)
    assert scores.micro.recall == pytest.approx(2 / 3)
    assert scores.micro.f1 == pytest.approx(4 / 7)
    assert (scores.types["b"].correct, scores.types["b"].predicted, scores.types["b"].gold) == (1, 2, 1)
    assert (scores.nested.gold, scores.nested.found) == (2, 1)
    assert (scores.nested.predicted, scores.nested.right) == (2, 1)
    assert scores.documents == 2


def test_right_boundaries_with_the_wrong_type_are_wrong():
    assert score([[(0, 4, "a")]], [[(0, 4, "b")]]).micro.f1 == 0.0


@given(st.lists(spans, max_size=4))
def test_gold_against_itself_is_perfect(documents):
    scores = score(documents, documents)
    assert scores.micro.f1 == (1.0 if any(documents) else 0.0)
    assert scores.nested.found == scores.nested.gold == scores.nested.right


@given(st.lists(st.tuples(spans, spans), max_size=4))
def test_types_add_up_to_micro(pairs):
    scores = score([g for g, _ in pairs], [s for _, s in pairs])
    for name in ("correct", "predicted", "gold"):
        assert sum(getattr(s, name) for s in scores.types.values()) == getattr(scores.micro, name)
    assert 0.0 <= scores.micro.f1 <= 1.0


@given(spans)
def test_nested_is_what_pairs_say(drawn):
    def inside(a, b):
        return b[0] <= a[0] and a[1] <= b[1] and a[:2] != b[:2]

    expected = {a for a in drawn if any(inside(a, b) or inside(b, a) for b in drawn)}
    assert nested(drawn) == expected


def test_as_dict_has_the_strict_micro_f1():
    assert score([[(0, 1, "a")]], [[(0, 1, "a")]]).as_dict()["micro"]["f1"] == 1.0


def test_documents_must_match():
    with pytest.raises(ValueError, match="zip"):
        score([[]], [[], []])
