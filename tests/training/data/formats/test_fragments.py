import itertools

import pytest
from hypothesis import given

from tests.support.annotated import annotated
from training.data.formats.fragments import fits, merged, within


@pytest.mark.parametrize(
    ("fragments", "inside"), [([(0, 3)], True), ([], False), ([(1, 1)], False), ([(2, 4)], False), ([(-1, 2)], False)]
)
def test_within(fragments, inside):
    assert within("abc", fragments) is inside


def test_only_what_stands_between_fragments_parts_them():
    text = "pain in left\n  and right arm"
    assert merged(text, [(8, 12), (15, 18)]) == [(8, 18)]
    assert merged(text, [(19, 24), (8, 12)]) == [(8, 12), (19, 24)]
    assert merged(text, [(0, 6), (4, 8), (8, 12)]) == [(0, 12)]


@pytest.mark.parametrize(
    ("fragments", "surface", "fit"),
    [
        ([(8, 12)], "left", True),
        ([(7, 12)], "left", False),
        ([(8, 13)], "left ", True),  # a line break cannot stand in most formats
        ([(8, 12), (25, 28)], "left arm", True),
        ([(8, 12), (25, 28)], "left ... arm", True),
        ([(8, 12), (25, 28)], "left\n  and right arm", True),
        ([(8, 12), (24, 27)], "left arm", False),
        ([(8, 99)], "left", False),
    ],
)
def test_fits(fragments, surface, fit):
    assert fits("pain in left\n  and right arm", fragments, surface) is fit


@given(annotated())
def test_merged_covers_the_fragments_and_no_letter_more(drawn):
    text, mentions = drawn
    fragments = [(start, end) for start, end, _ in mentions]
    covered = {i for start, end in fragments for i in range(start, end)}
    spans = merged(text, fragments)
    kept = {i for start, end in spans for i in range(start, end)}
    assert covered <= kept
    assert all(text[i].isspace() for i in kept - covered)
    assert all(text[end:start].strip() for (_, end), (start, _) in itertools.pairwise(spans))
