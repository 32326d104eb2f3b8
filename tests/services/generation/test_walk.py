import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.generation.copy.lines import mentions
from services.generation.walk import Walk, after, steps_of
from shared.text.grammar import (
    ABSENT,
    CLOSE,
    COPY,
    LABEL,
    OPEN,
    Labels,
    PieceTokens,
    Script,
    actions_of,
)
from shared.text.pieces import split

TEXT = "IL-2 gene of 右肺 [x]\\ | cells"
TYPES = ("protein", "dna", "cell_line", "cell_type")


def script_of(tokens, text, types=TYPES):
    return Script(tokens, PieceTokens(tokens, split(text)), Labels(tokens, types, "en"))


@given(data=st.data())
def test_any_line_can_be_walked_and_gives_its_steps(tokens, data):
    script = script_of(tokens, TEXT)
    places = st.integers(0, len(script.pieces))
    span = st.tuples(places, places, st.sampled_from(TYPES)).filter(lambda one: one[0] < one[1])
    actions = actions_of(len(script.pieces), data.draw(st.lists(span, max_size=6)), script.labels)
    done = data.draw(st.integers(0, len(actions)))
    walk = Walk(script, actions[:done])
    said = list(script.said(actions))[sum(1 for _ in script.said(actions[:done])) :]
    logprobs = []
    for token in said:
        # What may come is what the grammar says, or the rest of what was begun.
        allowed = walk.allowed()
        assert token in allowed
        assert walk.choices == {} or tuple(walk.choices) == allowed
        logprobs.append(dict.fromkeys(allowed, -1.0))
        walk.take(token)
    assert walk.allowed() == tokens.end
    assert walk.choices == {}
    steps = steps_of(Walk(script, actions[:done]), said, logprobs)
    assert [step.action for step in steps] == actions[done:]
    assert all(step.logprobs is None or set(step.logprobs.values()) == {-1.0} for step in steps)
    assert after(script, actions).done


def test_the_choices_are_those_of_the_grammar(tokens):
    script = script_of(tokens, TEXT)
    for done in ([], [COPY], [COPY, OPEN], [COPY, OPEN, COPY], [OPEN, COPY, CLOSE]):
        actions, first = script.options(after(script, done))
        assert Walk(script, done).choices == dict(zip(first, actions, strict=True))


def test_a_token_that_may_not_come_is_refused(tokens):
    walk = Walk(script_of(tokens, "ab"))
    with pytest.raises(ValueError, match="does not allow"):
        walk.take(tokens.close[0])


@pytest.mark.parametrize("done", [[COPY, OPEN], [COPY, OPEN, COPY, COPY, CLOSE]])
def test_a_mention_ends_the_walk_with_its_label_and_is_closed_where_it_gets_too_long(tokens, done):
    script = script_of(tokens, "a b c d")
    walk = Walk(script, done, closing=2)
    taken = []
    while walk.choices or walk.allowed() != tokens.end:
        assert OPEN not in walk.choices.values()
        taken.append(walk.take(walk.allowed()[0]))
    actions = [action for action in taken if action is not None]
    whole = [*done, *actions]
    assert whole[:5] == [COPY, OPEN, COPY, COPY, CLOSE]
    assert all(action >= LABEL for action in whole[5:])
    assert len(whole) > 5
    assert not after(script, whole).open


def test_what_was_not_said_of_an_action_has_no_chance(tokens):
    script = script_of(tokens, "ab")
    said = tokens.absent
    (step, *_) = steps_of(Walk(script), said, [{said[0]: 0.0}] * len(said))
    assert step.logprobs == {COPY: -math.inf, OPEN: -math.inf, ABSENT: 0.0}
    assert mentions(script.begin(), script.labels, []) == {}
