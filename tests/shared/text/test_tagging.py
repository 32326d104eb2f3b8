from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.text.tagging import Span, decode, encode, escape, unescape

TEXTS = st.text(max_size=60) | st.text(alphabet="[]\\ab肺😀", max_size=60)


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, list[Span]]:
    text = draw(TEXTS.filter(bool))
    offsets = st.integers(0, len(text))
    pairs = st.tuples(offsets, offsets).filter(lambda pair: pair[0] < pair[1])
    return text, draw(st.lists(pairs, max_size=12))


def crosses(one: Span, other: Span) -> bool:
    (a, b), (c, d) = sorted((one, other))
    return a < c < b < d


def in_order(spans: list[Span]) -> list[Span]:
    return sorted(set(spans), key=lambda span: (span[0], -span[1]))


@given(TEXTS)
def test_escape_is_reversible(text: str) -> None:
    assert unescape(escape(text)) == text
    assert decode(escape(text)) == (text, [])


@settings(max_examples=300)
@given(texts_with_spans())
def test_lines_give_back_the_text_and_all_spans(case: tuple[str, list[Span]]) -> None:
    text, spans = case
    decoded = [decode(line) for line in encode(text, spans)]
    assert all(plain == text for plain, _ in decoded)
    assert all(found == in_order(found) for _, found in decoded)
    assert in_order([span for _, found in decoded for span in found]) == in_order(spans)
    assert sum(len(found) for _, found in decoded) == len(set(spans))


@settings(max_examples=300)
@given(texts_with_spans())
def test_nested_spans_make_one_line(case: tuple[str, list[Span]]) -> None:
    text, spans = case
    nested: list[Span] = []
    for span in spans:
        if not any(crosses(span, kept) for kept in nested):
            nested.append(span)
    lines = encode(text, nested)
    assert [decode(line) for line in lines] == ([(text, in_order(nested))] if nested else [])


@given(texts_with_spans())
def test_a_span_goes_to_the_first_line_it_fits(case: tuple[str, list[Span]]) -> None:
    text, spans = case
    lines = [decode(line)[1] for line in encode(text, spans)]
    for place, line in enumerate(lines):
        for span in line:
            for earlier in lines[:place]:
                assert any(crosses(span, other) for other in earlier)


@settings(max_examples=300)
@given(st.text(alphabet="[]\\ab", max_size=12))
def test_decode_takes_only_what_encode_writes(line: str) -> None:
    try:
        text, spans = decode(line)
    except ValueError:
        return
    assert encode(text, spans) == ([line] if spans else [])
    assert spans or escape(text) == line


@pytest.mark.parametrize(
    ("text", "spans", "lines"),
    [
        ("CD28 receptor", [(0, 4), (0, 13)], ["[[CD28] receptor]"]),
        ("CD28 receptor", [(5, 13), (0, 13), (0, 4)], ["[[CD28] [receptor]]"]),
        ("CD28 receptor", [(0, 4), (0, 4)], ["[CD28] receptor"]),
        ("右肺腺癌", [(0, 3), (1, 4)], ["[右肺腺]癌", "右[肺腺癌]"]),
        ("abc", [(0, 1), (1, 2)], ["[a][b]c"]),
        ("[Ca2+] \\", [(1, 5)], ["\\[[Ca2+]\\] \\\\"]),
        ("abc", [], []),
    ],
)
def test_examples(text: str, spans: list[Span], lines: list[str]) -> None:
    assert encode(text, spans) == lines


@pytest.mark.parametrize("span", [(1, 1), (2, 1), (-1, 2), (0, 7)])
def test_a_span_that_marks_nothing_is_refused(span: Span) -> None:
    with pytest.raises(ValueError, match="spans"):
        encode("secret", [span])


@pytest.mark.parametrize("line", ["[secret", "secret]", "secret[]", "][secret", "[[secret]]", "secret\\", "sec\\ret"])
def test_a_malformed_line_is_refused_without_quoting_it(line: str) -> None:
    with pytest.raises(ValueError, match="tagged text") as caught:
        decode(line)
    assert "secret" not in str(caught.value)


def test_unescape_refuses_brackets() -> None:
    with pytest.raises(ValueError, match="tagged text"):
        unescape("[a]")
