import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared.text.labelled import (
    MAX_DEPTH,
    MAX_LINES,
    Action,
    Asked,
    Does,
    LineState,
    PieceTokens,
    actions_of,
    escape,
    lines_of,
    spans_of,
)

from shared.text.pieces import split

TYPES = ("protein", "dna", "cell_line", "cell_type")


@st.composite
def typed_spans(draw, pieces):
    found = set()
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, pieces - 1))
        found.add((start, draw(st.integers(start + 1, pieces)), draw(st.sampled_from(TYPES))))
    return found


@given(st.data())
@settings(deadline=None)
def test_actions_say_the_spans_and_are_read_back(data):
    pieces = data.draw(st.integers(1, 12))
    spans = data.draw(typed_spans(pieces))
    said = {span for line in lines_of(spans) for span in line}
    actions = actions_of(pieces, spans, TYPES)
    assert set(spans_of(pieces, actions, TYPES)) == said <= spans
    state = LineState(pieces)
    for action in actions:
        assert action.does in state.admissible(len(TYPES))
        if action.does is Does.CLOSE:
            assert action.type in state.closable(len(TYPES))
        state.apply(action)
    assert state.done
    assert state.admissible(len(TYPES)) == ()


def test_nothing_is_left_out_while_there_are_lines_and_depth():
    assert lines_of({(0, 2, "dna"), (1, 3, "dna"), (0, 2, "protein")}) == [
        [(0, 2, "dna"), (0, 2, "protein")],
        [(1, 3, "dna")],
    ]
    deep = {(0, i + 1, "dna") for i in range(MAX_DEPTH * MAX_LINES)}
    assert {span for line in lines_of(deep) for span in line} == deep


def test_every_way_through_ends():
    draw = random.Random(4)
    for _ in range(50):
        state = LineState(6)
        steps = 0
        while admissible := state.admissible(len(TYPES)):
            does = draw.choice(admissible)
            state.apply(Action(does, draw.choice(state.closable(len(TYPES))) if does is Does.CLOSE else -1))
            steps += 1
        assert state.done
        assert steps < 500


def test_one_span_has_a_type_once():
    state = LineState(2)
    for action in (Action(Does.OPEN), Action(Does.OPEN), Action(Does.COPY), Action(Does.CLOSE, 1)):
        state.apply(action)
    assert state.closable(len(TYPES)) == [0, 2, 3]


def test_the_text_is_escaped_and_its_spaces_stay(tokens, tokenizer):
    pieces = split("T | [cells] of\\ IL-2")
    said = PieceTokens(tokens, pieces)
    whole = [token for ids in said.copies for token in ids]
    assert tokenizer.decode(whole) == escape(pieces.text) == r"T \| \[cells\] of\\ IL-2"
    assert tokenizer.decode(said.text) == pieces.text + "\n"


def test_the_types_stand_first_by_their_names(tokens, tokenizer):
    assert tokenizer.decode(Asked(tokens, TYPES, "en").header) == "<bos>Protein, DNA, Cell line, Cell type:\n"
    assert tokenizer.decode(Asked(tokens, ("disease", "body"), "zh").header) == "<bos>疾病、身体:\n"
    assert tokenizer.decode(Asked(tokens, ("disease",), "zh", ["Disease"]).header) == "<bos>Disease:\n"
    with pytest.raises(ValueError, match="same name"):
        Asked(tokens, ("disease", "cancer"), "en", ["Cancer", "Cancer"])


def test_names_that_begin_alike_are_told_apart_later(tokens):
    asked = Asked(tokens, TYPES, "en")
    line, cell_type = asked.said[2], asked.said[3]
    first = next(i for i, (a, b) in enumerate(zip(line, cell_type, strict=False)) if a != b)
    closable = list(range(len(TYPES)))
    assert asked.branches(closable, first, 2) == ([line[first], cell_type[first]], 0)
    assert asked.branches([0, 1, 2], first, 2) == ([line[first]], 0)
