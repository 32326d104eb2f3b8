import itertools

import pytest
from hypothesis import given

from tests.support.annotated import annotated
from training.data.formats.fragments import fits, fits_normalised, merged, trimmed, within


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


@pytest.mark.parametrize(
    ("text", "surface", "fit"),
    [
        ("TNF-α", "TNF-a", True),
        ("TNF-α", "TNF-alpha", True),
        ("TNF-α", "TNF-b", False),
        ("TNF-α", "TNF", False),
        ("5 µg", "5 μg", True),  # micro sign and Greek letter
        ("Sjo\u0308gren", "Sj\u00f6gren", True),
        ("Sjögren", "Sjogren", True),
        ("ﬁbrosis", "fibrosis", True),
        ("ＣＴ检查", "CT检查", True),
        ("IL–2", "IL-2", True),
        ("Crohn’s", "crohn's", True),
        ("<5 mg", "&lt;5 mg", True),
        ("TNF-α", "TNF-?", True),
        ("na\u00efve cell", "na\ufffdve cell", True),
        ("肺癌", "??", False),  # all of it lost: nothing to compare
        ("what", "wha?", False),
        ("胸部", "肺部", False),
        (" left ", "left", True),
        ("left arm", "leftarm", False),
    ],
)
def test_fits_normalised(text, surface, fit):
    assert fits_normalised(f"x{text}x", [(1, 1 + len(text))], surface) is fit


@given(annotated())
def test_what_fits_also_fits_normalised(drawn):
    text, mentions = drawn
    assert all(fits_normalised(text, [(start, end)], text[start:end]) for start, end, _ in mentions)


@pytest.mark.parametrize(
    ("span", "inside"), [((0, 4), (1, 3)), ((1, 3), (1, 3)), ((0, 1), None), ((0, 2), (1, 2)), ((3, 5), None)]
)
def test_trimmed(span, inside):
    assert trimmed(" ab\u3000\n", span) == inside
