import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.text.grammar import Labels, PieceTokens, Script, lines_of
from shared.text.pieces import split
from training.data.corpora import Example, GoldMention
from training.data.labelled import PLAIN, Texts, Variation, item

TYPES = ("protein", "dna", "cell_line", "cell_type")
EXAMPLE = Example(
    "1", "The CD28 gene of T cells.", "en", (GoldMention(4, 8, "protein"), GoldMention(4, 13, "dna")), TYPES
)


def plain(tokens, example):
    texts = Texts(tokens, 160, TYPES)
    (source,) = texts.sources([example])
    return texts.items(source, random.Random(0), PLAIN)


def test_a_line_says_what_the_gold_says(tokens, tokenizer):
    (found,) = plain(tokens, EXAMPLE)
    prompt = "<bos>Protein, DNA, Cell line, Cell type:\nThe CD28 gene of T cells.\n"
    whole = prompt + "The [[CD28 | Protein] gene | DNA] of T cells."
    assert whole.startswith(tokenizer.decode(found.ids))
    assert [(one.type, one.right) for one in found.marked] == [("protein", True), ("dna", True)]
    before, bracket, last, bar = found.marked[0].at
    assert [tokenizer.decode(found.ids[at]) for at in (bracket, last, bar)] == ["[", "8", " |"]
    assert before == bracket - 1


def test_a_text_without_mentions_has_one_decision(tokens):
    (found,) = plain(tokens, replace(EXAMPLE, mentions=()))
    ((at, options, right),) = found.decisions
    assert at == len(found.ids) - 1
    assert options[right] == tokens.absent[0]


@st.composite
def typed_spans(draw, pieces):
    found = set()
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, pieces - 1))
        found.add((start, draw(st.integers(start + 1, pieces)), draw(st.sampled_from(TYPES))))
    return frozenset(found)


@given(st.data())
@settings(deadline=None, max_examples=80)
def test_what_is_right_on_a_right_line_is_the_line(tokens, data):
    pieces = split(
        data.draw(st.sampled_from(["T | [cells] of\\ IL-2, 1 2", "|", "急性白血病 (AML) 患者|", "a  b\n c"]))
    )
    gold = data.draw(typed_spans(len(pieces)))
    gold = frozenset(span for line in lines_of(gold) for span in line)
    found = item(Script(tokens, PieceTokens(tokens, pieces), Labels(tokens, TYPES, "en")), gold, gold)
    for at, options, right in found.decisions:
        assert at + 1 == len(found.ids) or found.ids[at + 1] == options[right]
    assert {one.type for one in found.marked} == {key for *_, key in gold}
    assert all(one.right for one in found.marked)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_a_wrong_line_teaches_what_is_right(tokens, tokenizer, seed):
    """Whatever is marked wrongly, no decision wants a mention that the gold does not have."""
    texts = Texts(tokens, 160, TYPES)
    (source,) = texts.sources([EXAMPLE])
    (found,) = texts.items(source, random.Random(seed), replace(PLAIN, wrong=1.0))
    for at, options, right in found.decisions:
        if options[right] in (tokens.open[0], tokens.spaced_open[0]):
            said = tokenizer.decode(found.ids[: at + 1]).split("\n")[-1]
            assert re.sub(r"\[| \| [^\]]*\]", "", said).strip() == "The"
    assert {one.type for one in found.marked} <= set(TYPES)


def test_what_is_not_annotated_is_not_learnt(tokens):
    script = Script(tokens, PieceTokens(tokens, split(EXAMPLE.text)), Labels(tokens, (*TYPES, "chemical"), "en"))
    gold = frozenset({(1, 3, "protein")})
    found = item(script, gold, gold, annotated=False)
    wanted = {options[right] for _, options, right in found.decisions}
    assert tokens.spaced_open[0] in wanted
    assert tokens.bar[0] in wanted
    assert tokens.ids(" of")[0] not in wanted  # it might be a chemical
    nothing = item(script, frozenset(), frozenset(), annotated=False)
    assert nothing.decisions == ()


def test_variations_follow_their_shares(tokens, tokenizer):
    texts = Texts(tokens, 160, (*TYPES, "chemical", "disease"))
    (source,) = texts.sources([EXAMPLE])
    draw = random.Random(3)

    def headers(vary):
        for _ in range(40):
            for one in texts.items(source, draw, vary):
                yield tokenizer.decode(one.ids).removeprefix("<bos>").split(":\n")[0]

    usual = "Protein, DNA, Cell line, Cell type"
    assert set(headers(PLAIN)) == {usual}
    assert {tuple(sorted(h.split(", "))) for h in headers(replace(PLAIN, shuffled=1.0))} == {
        ("Cell line", "Cell type", "DNA", "Protein")
    }
    assert all(len(h.split(", ")) < 4 for h in headers(replace(PLAIN, dropped=1.0)))
    assert all(len(h.split(", ")) > 4 for h in headers(replace(PLAIN, extra=1.0)))
    assert all("蛋白质" in h for h in headers(replace(PLAIN, other_names=1.0)))
    assert len(set(headers(Variation()))) > 5


@pytest.mark.parametrize(("vary", "segments"), [(PLAIN, 2), (replace(PLAIN, long=1.0), 1)])
def test_segments_are_as_long_as_asked(tokens, vary, segments):
    example = replace(EXAMPLE, text=EXAMPLE.text + " " + "It is so. " * 3, mentions=())
    texts = Texts(tokens, 16, TYPES)
    (source,) = texts.sources([example])
    assert len(texts.items(source, random.Random(0), vary)) == segments
