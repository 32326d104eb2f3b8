import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.generation.per_type.lines import spans
from services.generation.per_type.walk import Walk, steps_of
from shared.text.per_type import Action, actions_of, nested_only
from shared.text.pieces import split

END = 1
TEXT = "IL-2 gene of 右肺 [x]\\ cells"


def said_by(tokens, pieces, actions):
    return [token for _, ids in tokens.steps(pieces, actions) for token in ids]


@given(data=st.data())
def test_any_line_can_be_walked_and_gives_its_steps(per_type_tokens, data):
    pieces = split(TEXT)
    places = st.integers(0, len(pieces))
    pairs = data.draw(st.lists(st.tuples(places, places).filter(lambda pair: pair[0] < pair[1]), max_size=6))
    actions = actions_of(len(pieces), nested_only(pairs))
    done = data.draw(st.integers(0, len(actions)))
    walk = Walk(per_type_tokens, pieces, END, actions[:done])
    said = said_by(per_type_tokens, pieces, actions)[len(said_by(per_type_tokens, pieces, actions[:done])) :]
    logprobs = []
    for token in said:
        assert token in walk.allowed()
        logprobs.append(dict.fromkeys(walk.allowed(), -1.0))
        walk.take(token)
    assert walk.allowed() == (END,)
    assert walk.choices == {}
    steps = steps_of(Walk(per_type_tokens, pieces, END, actions[:done]), said, logprobs)
    assert [step.action for step in steps] == actions[done:]
    assert all(step.logprobs is None or set(step.logprobs.values()) == {-1.0} for step in steps)


def test_a_token_that_may_not_come_is_refused(per_type_tokens):
    walk = Walk(per_type_tokens, split("ab"), END)
    with pytest.raises(ValueError, match="does not allow"):
        walk.take(per_type_tokens.close[0])


def test_a_mention_ends_the_walk_and_is_closed_where_it_gets_too_long(per_type_tokens):
    pieces = split("a b c d")
    walk = Walk(per_type_tokens, pieces, END, [Action.COPY, Action.OPEN], closing=2)
    taken = []
    while walk.choices or walk.allowed() != (END,):
        assert Action.OPEN not in walk.choices.values()
        taken.append(walk.take(walk.allowed()[0]))
    assert [action for action in taken if action is not None] == [Action.COPY, Action.COPY, Action.CLOSE]


def test_what_was_not_said_of_an_action_has_no_chance(per_type_tokens):
    pieces = split("ab")
    said = per_type_tokens.absent
    (step, *_) = steps_of(Walk(per_type_tokens, pieces, END), said, [{said[0]: 0.0}] * len(said))
    assert step.logprobs == {Action.COPY: -math.inf, Action.OPEN: -math.inf, Action.ABSENT: 0.0}
    assert spans(len(pieces), []) == {}
