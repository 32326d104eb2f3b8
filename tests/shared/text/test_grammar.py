import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.text.grammar import (
    ABSENT,
    CLOSE,
    COPY,
    LABEL,
    MAX_DEPTH,
    MAX_LINES,
    OPEN,
    CopyTokens,
    Labels,
    LineState,
    PieceTokens,
    Script,
    actions_of,
    lines_of,
    spans_of,
    tagged_text,
)
from shared.text.pieces import split
from shared.text.tagging import decode

TYPES = ("protein", "dna", "cell_line", "cell_type")
TEXTS = ["T | [cells] of\\ IL-2, 1 2", "|", "急性白血病 (AML) 患者|", "a  b\n c", " - 5"]


@st.composite
def typed_spans(draw, pieces):
    found = set()
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, pieces - 1))
        found.add((start, draw(st.integers(start + 1, pieces)), draw(st.sampled_from(TYPES))))
    return found


@given(st.data())
@settings(deadline=None)
def test_actions_say_the_spans_and_are_read_back(tokens, data):
    pieces = data.draw(st.integers(1, 12))
    spans = data.draw(typed_spans(pieces))
    labels = Labels(tokens, TYPES, "en")
    said = {span for line in lines_of(spans) for span in line}
    actions = actions_of(pieces, spans, labels)
    assert set(spans_of(pieces, actions, labels)) == said <= spans
    state = LineState(pieces, labels.root)
    for action in actions:
        assert action in state.admissible()
        state.apply(action)
    assert state.done
    assert state.admissible() == ()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_the_text_of_a_line_is_what_the_codec_reads(tokens, tokenizer, data):
    pieces = split(data.draw(st.sampled_from(TEXTS)))
    labels = Labels(tokens, TYPES, "en")
    script = Script(tokens, PieceTokens(tokens, pieces), labels)
    spans = data.draw(typed_spans(len(pieces)))
    (first, *_) = lines_of(spans) or [[]]
    if not first:
        return
    actions = actions_of(len(pieces), first, labels)
    row = tagged_text(pieces, actions, labels)
    text, found = decode(row)
    assert text == pieces.text
    names = dict(zip(TYPES, labels.names, strict=True))
    assert set(found) == {(pieces.cores[s], pieces.ends[e - 1], names[key]) for s, e, key in first}
    assert tokenizer.decode(list(script.said(actions[:-1]))) == row


def test_nothing_is_left_out_while_there_are_lines_and_depth():
    assert lines_of({(0, 2, "dna"), (1, 3, "dna"), (0, 2, "protein")}) == [
        [(0, 2, "dna"), (0, 2, "protein")],
        [(1, 3, "dna")],
    ]
    deep = {(0, i + 1, "dna") for i in range(MAX_DEPTH * MAX_LINES)}
    assert {span for line in lines_of(deep) for span in line} == deep


@pytest.mark.parametrize("types", [TYPES, TYPES[:1]])
def test_every_way_through_ends(tokens, types):
    """From no place that can be reached is there no way on."""
    draw = random.Random(4)
    labels = Labels(tokens, types, "en")
    for _ in range(200):
        state, steps = LineState(5, labels.root), 0
        while admissible := state.admissible():
            state.apply(draw.choice([a for a in admissible if a != ABSENT]))
            steps += 1
        assert state.done
        assert steps < 500


def test_one_span_has_a_type_once(tokens):
    labels = Labels(tokens, TYPES[:2], "en")
    state = LineState(2, labels.root)
    for action in (OPEN, OPEN):
        state.apply(action)
    assert OPEN not in state.admissible()  # a third bracket here could not be closed
    for action in (COPY, CLOSE, *labels.path(1), CLOSE):
        state.apply(action)
    for action in labels.path(0):  # the other type is no choice any more
        assert state.admissible() == (action,)
        closed = state.apply(action)
    assert closed == (0, 1, 0)


def test_names_that_begin_alike_are_told_apart_later(tokens):
    labels = Labels(tokens, TYPES, "en")
    line, cell_type, protein = labels.path(2), labels.path(3), labels.path(0)
    assert all(action >= LABEL for action in line + cell_type + protein)
    alike = [one == other for one, other in zip(line, cell_type, strict=False)]
    assert alike == [True] * (len(alike) - 1) + [False]
    assert protein != line[: len(protein)]
    for type_ in range(len(TYPES)):
        node, said = labels.root, ()
        for action in labels.path(type_):
            branch = node[action - LABEL]
            assert len({other.tokens[0] for other in node}) == len(node)
            node, said = branch.node, said + branch.tokens
        assert said == (*tokens.ids(f" {labels.names[type_]}"), *tokens.close)


def test_the_text_is_escaped_and_its_spaces_stay(tokens, tokenizer):
    pieces = split("T | [cells] of\\ IL-2")
    said = PieceTokens(tokens, pieces)
    whole = [token for ids in said.copies for token in ids]
    assert tokenizer.decode(whole) == r"T \| \[cells\] of\\ IL-2"
    assert tokenizer.decode(list(said.text)) == pieces.text + "\n"


def test_the_types_stand_first_by_their_names(tokens, tokenizer):
    assert tokenizer.decode(Labels(tokens, TYPES, "en").header) == "<bos>Protein, DNA, Cell line, Cell type:\n"
    assert tokenizer.decode(Labels(tokens, ("disease", "body"), "zh").header) == "<bos>疾病、身体:\n"
    assert tokenizer.decode(Labels(tokens, ("disease",), "zh", ["Disease"]).header) == "<bos>Disease:\n"
    with pytest.raises(ValueError, match="same name"):
        Labels(tokens, ("disease", "cancer"), "en", ["Cancer", "Cancer"])


def test_of_two_actions_with_the_same_first_token_the_copy_stays(tokens):
    """A text that begins with ` -` could not be told from a line without mentions."""
    pieces = split(" - 5")
    script = Script(tokens, PieceTokens(tokens, pieces), Labels(tokens, TYPES, "en"))
    actions, first = script.options(script.begin())
    assert tokens.absent[0] in first
    assert COPY in actions
    assert ABSENT not in actions


class OneToken:
    """A tokenizer that mixes up the marks."""

    bos_token_id = eos_token_id = None

    def encode(self, text, *, add_special_tokens):
        return [1]


def test_a_tokenizer_that_mixes_up_the_marks_is_refused():
    with pytest.raises(ValueError, match="base_model"):
        CopyTokens(OneToken())
