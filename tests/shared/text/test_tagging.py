from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.entity_types import TYPES
from shared.text.tagging import TypedSpan, decode, encode, escape

TEXTS = st.text(max_size=60) | st.text(alphabet="[]|\\ ab肺😀", max_size=60)
# Names of the inventory, and whatever somebody may call a type of their own.
LABELS = st.sampled_from([name for each in TYPES.values() for name in (each.en, each.zh)]) | st.text(
    alphabet="[]|\\ \na肺", max_size=6
)


@st.composite
def texts_with_mentions(draw: st.DrawFn) -> tuple[str, list[TypedSpan]]:
    text = draw(TEXTS.filter(bool))
    offsets = st.integers(0, len(text))
    labels = draw(st.lists(LABELS, min_size=1, max_size=3))
    mentions = st.tuples(offsets, offsets, st.sampled_from(labels)).filter(lambda each: each[0] < each[1])
    return text, draw(st.lists(mentions, max_size=12))


def crosses(one: TypedSpan, other: TypedSpan) -> bool:
    (a, b), (c, d) = sorted((one[:2], other[:2]))
    return a < c < b < d


def in_order(mentions: list[TypedSpan]) -> list[TypedSpan]:
    return sorted(dict.fromkeys(mentions), key=lambda each: (each[0], -each[1]))


@given(TEXTS)
def test_escape_is_reversible(text: str) -> None:
    assert decode(escape(text)) == (text, [])


@settings(max_examples=300)
@given(texts_with_mentions())
def test_rows_give_back_the_text_and_all_mentions(case: tuple[str, list[TypedSpan]]) -> None:
    text, mentions = case
    decoded = [decode(row) for row in encode(text, mentions)]
    assert all(plain == text for plain, _ in decoded)
    assert all(found == in_order(found) for _, found in decoded)
    assert sorted(each for _, found in decoded for each in found) == sorted(set(mentions))


@settings(max_examples=300)
@given(texts_with_mentions())
def test_nested_mentions_make_one_row(case: tuple[str, list[TypedSpan]]) -> None:
    text, mentions = case
    nested: list[TypedSpan] = []
    for mention in mentions:
        if not any(crosses(mention, kept) for kept in nested):
            nested.append(mention)
    rows = encode(text, nested)
    assert [decode(row) for row in rows] == ([(text, in_order(nested))] if nested else [])


@given(texts_with_mentions())
def test_a_mention_goes_to_the_first_row_it_fits(case: tuple[str, list[TypedSpan]]) -> None:
    text, mentions = case
    rows = [decode(row)[1] for row in encode(text, mentions)]
    for place, row in enumerate(rows):
        for mention in row:
            for earlier in rows[:place]:
                assert any(crosses(mention, other) for other in earlier)


@settings(max_examples=500)
@given(
    st.text(alphabet="[]|\\ ab", max_size=12)
    | st.lists(st.sampled_from(["[", " | a]", " | b]", "a", " ", "|", "]", "\\|", "\\"]), max_size=10).map("".join)
)
def test_decode_takes_only_what_encode_writes(row: str) -> None:
    try:
        text, mentions = decode(row)
    except ValueError:
        return
    assert encode(text, mentions) == ([row] if mentions else [])
    assert mentions or escape(text) == row


@pytest.mark.parametrize(
    ("text", "mentions", "rows"),
    [
        ("CD28 receptor", [(0, 4, "Protein"), (0, 13, "DNA")], ["[[CD28 | Protein] receptor | DNA]"]),
        (
            "CD28 receptor",
            [(5, 13, "a"), (0, 13, "b"), (0, 4, "c")],
            ["[[CD28 | c] [receptor | a] | b]"],
        ),
        ("CD28 up", [(0, 4, "RNA"), (0, 4, "DNA"), (0, 4, "RNA")], ["[[CD28 | DNA] | RNA] up"]),
        ("右肺腺癌", [(0, 3, "身体"), (1, 4, "疾病")], ["[右肺腺 | 身体]癌", "右[肺腺癌 | 疾病]"]),
        ("abc", [(0, 1, "x"), (1, 2, "x")], ["[a | x][b | x]c"]),
        ("[Ca2+] \\ | x", [(1, 5, "a|b]")], ["\\[[Ca2+ | a\\|b\\]]\\] \\\\ \\| x"]),
        ("a | b", [(0, 5, "c"), (2, 3, "")], ["[a [\\| | ] b | c]"]),
        ("abc", [], []),
    ],
)
def test_examples(text: str, mentions: list[TypedSpan], rows: list[str]) -> None:
    assert encode(text, mentions) == rows


@pytest.mark.parametrize("span", [(1, 1), (2, 1), (-1, 2), (0, 7)])
def test_a_span_that_marks_nothing_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="spans"):
        encode("secret", [(*span, "a")])


@pytest.mark.parametrize(
    "row",
    [
        "[secret", "secret | a]", "secret[ | a]", " | a][secret", "[[secret | a] | a]", "secret\\", "sec\\ret",
        "[secret]", "[secret |a]", "[secret| a]", "sec|ret", "[secret | a | b]", "[secret | [a]]",
    ],
)  # fmt: skip
def test_a_malformed_row_is_refused_without_quoting_it(row: str) -> None:
    with pytest.raises(ValueError, match="tagged text") as caught:
        decode(row)
    assert "secret" not in str(caught.value)
