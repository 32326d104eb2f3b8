import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.selection.overlaps import NESTING_BAR, Scored, keep, margins
from shared.messages import Candidate, Segment
from shared.selection.calibration import logit

TEXT = "abcdefghijklmnopqrst"
SEGMENT = Segment(document_id="d", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")


def candidate(start, end, confidence, *, greedy=True, type_="protein"):
    return Candidate(
        segment=SEGMENT,
        type=type_,
        start=start,
        end=end,
        text=TEXT[start:end],
        generator_confidence=confidence,
        greedy=greedy,
    )


def scored(start, end, probability, **how):
    return Scored(candidate(start, end, 0.5, **how), probability)


def kept(*given_):
    return [(e.start, e.end) for e in keep(given_)]


SPANS = st.tuples(st.integers(0, 10), st.integers(1, 6), st.floats(0.01, 0.99), st.sampled_from(["protein", "dna"]))


@given(st.lists(SPANS, max_size=8), st.randoms())
def test_margins_are_over_the_best_other_span_of_the_type_that_is_overlapped(spans, order):
    candidates = [candidate(start, start + length, p, type_=type_) for start, length, p, type_ in spans]
    found = margins(candidates)
    for a, margin in zip(candidates, found, strict=True):
        rivals = [
            logit(b.generator_confidence)
            for b in candidates
            if b.type == a.type and (b.start, b.end) != (a.start, a.end) and b.start < a.end and a.start < b.end
        ]
        assert margin == pytest.approx(logit(a.generator_confidence) - max(rivals, default=-8.0))
    places = list(range(len(candidates)))
    order.shuffle(places)
    assert margins([candidates[i] for i in places]) == [found[i] for i in places]


def test_a_span_without_rivals_exceeds_a_hopeless_one():
    assert margins([]) == []
    assert margins([candidate(0, 2, 0.5), candidate(2, 4, 0.5), candidate(0, 2, 0.5, type_="dna")]) == [8.0] * 3


def test_of_crossing_spans_of_a_type_the_more_probable_stays():
    assert kept(scored(0, 5, 0.6), scored(3, 8, 0.9)) == [(3, 8)]
    assert kept(scored(0, 5, 0.6), scored(3, 8, 0.9, type_="dna")) == [(0, 5), (3, 8)]


def test_nested_spans_stay_and_boundary_variants_only_where_nesting_is_likely():
    assert kept(scored(0, 9, 0.6), scored(2, 5, 0.3, greedy=False)) == [(0, 9), (2, 5)]
    assert kept(scored(0, 9, 0.6), scored(0, 5, 0.3)) == [(0, 9), (0, 5)]  # the generator nested them itself
    below = NESTING_BAR - 0.01
    assert kept(scored(0, 9, 0.9), scored(0, 5, below, greedy=False)) == [(0, 9)]
    assert kept(scored(0, 9, 0.9), scored(0, 5, NESTING_BAR, greedy=False)) == [(0, 9), (0, 5)]


def test_a_span_that_is_given_twice_comes_out_once_at_its_best():
    (entity,) = keep([scored(0, 5, 0.6), scored(0, 5, 0.9, greedy=False)])
    assert (entity.confidence, entity.id, entity.text) == (0.9, "protein:0-5", TEXT[0:5])


GIVEN = st.lists(st.tuples(SPANS, st.booleans()), max_size=8)


@given(GIVEN, st.randoms())
def test_what_is_dropped_gives_way_to_what_is_better_and_order_does_not_matter(spans, order):
    some = [scored(s, s + length, p, type_=type_, greedy=greedy) for (s, length, p, type_), greedy in spans]
    entities = keep(some)
    for entity in entities:
        assert TEXT[entity.start : entity.end] == entity.text
    stay = {(e.type, e.start, e.end) for e in entities}
    for one in some:
        c = one.candidate
        if (c.type, c.start, c.end) not in stay:
            assert any(
                e.type == c.type and e.confidence >= one.probability and e.start < c.end and c.start < e.end
                for e in entities
            )
    crossing = [(a, b) for a in entities for b in entities if a.type == b.type and a.start < b.start < a.end < b.end]
    assert not crossing
    again = list(some)
    order.shuffle(again)
    assert {(e.type, e.start, e.end, e.confidence) for e in keep(again)} == {
        (e.type, e.start, e.end, e.confidence) for e in entities
    }
