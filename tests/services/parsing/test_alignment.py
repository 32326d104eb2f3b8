from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.parsing.alignment import Alignment, comparable, folded, in_word, matches

texts = st.text(max_size=40) | st.text(st.sampled_from("ab AB１1β-ßﬁ右肺ＣＴ\n\u200b"), max_size=40)


@given(texts)
def test_keys_come_from_their_characters(text: str) -> None:
    keys, sources = comparable(text)
    assert keys == folded(text) == "".join(map(folded, text))
    assert len(sources) == len(keys)
    assert sources == sorted(sources)
    assert all(0 <= source < len(text) for source in sources)
    assert not any(key.isspace() for key in keys)


@given(texts, texts)
def test_matches_rise_and_are_of_equal_characters(said: str, meant: str) -> None:
    to = matches(said, meant)
    assert len(to) == len(said)
    assert all(said[i] == meant[j] for i, j in enumerate(to) if j >= 0)
    found = [j for j in to if j >= 0]
    assert found == sorted(set(found))


def test_the_work_of_matching_is_bounded() -> None:
    assert len(matches("ab" * 20_000, "ba" * 20_000 + "c")) == 40_000


@given(texts, texts, st.data())
def test_a_span_lies_in_the_text(copy: str, text: str, data: st.DataObject) -> None:
    alignment = Alignment(copy, text)
    offsets = st.integers(0, len(copy))
    for start, end in sorted(data.draw(st.lists(st.tuples(offsets, offsets).filter(lambda pair: pair[0] < pair[1])))):
        if (span := alignment.span(start, end)) is not None:
            assert alignment.holds(start, end)
            assert 0 <= span[0] < span[1] <= len(text)


@given(texts, st.data())
def test_a_span_of_the_same_text_stays_where_it_is(text: str, data: st.DataObject) -> None:
    _, sources = comparable(text)
    places = [at for at in sorted({*sources, *(i + 1 for i in sources)}) if not in_word(text, at)]
    if len(places) > 1:
        start, end = sorted(data.draw(st.lists(st.sampled_from(places), min_size=2, max_size=2, unique=True)))
        alignment = Alignment(text, text)
        if alignment.holds(start, end):
            first, last = alignment.span(start, end) or (0, 0)
            assert folded(text[first:last]) == folded(text[start:end])


@pytest.mark.parametrize(
    ("copy", "differences"),
    [
        ("The  gene binds.", ["whitespace-changed"]),
        ("THE GENE BINDS.", ["characters-normalised"]),
        ("The gene", ["truncated"]),
        ("A gene", ["text-changed"]),
        ("Tha gene b", ["text-changed", "truncated"]),
        ("", ["text-changed"]),
    ],
)
def test_differences(copy: str, differences: list[str]) -> None:
    assert list(Alignment(copy, "The gene binds.").differences()) == differences


@pytest.mark.parametrize(
    ("copy", "said", "text", "found"),
    [
        ("beta-catenin receptor bind", "beta-catenin receptor", "β-catenin receptors bind", "β-catenin receptors"),
        ("CT示右肺", "CT", "ＣＴ示右肺", "ＣＴ"),
        ("leukemia of a boy", "leukemia", "leukaemia of a boy", "leukaemia"),
        ("AML seen", "AML", "acute myeloid leukemia seen", None),
        ("up and CD28", "CD28", "CD28 and up", "CD28"),  # looked up literally
        ("up and CD2", "CD2", "CD28 and up", None),  # but never within a word
    ],
)
def test_spans(copy: str, said: str, text: str, found: str | None) -> None:
    start = copy.index(said)
    span = Alignment(copy, text).span(start, start + len(said))
    assert (None if span is None else text[slice(*span)]) == found
