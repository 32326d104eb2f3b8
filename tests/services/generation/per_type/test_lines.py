import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.generation.per_type.lines import (
    PassedOver,
    TypeLine,
    TypeLineStart,
    TypeLineStep,
    begun,
    passed_over,
    spans,
    tagged_line,
    type_line,
)
from shared.messages import Alternative, Segment
from shared.text.per_type import Action, State, actions_of, nested_only
from shared.text.pieces import split
from tests.support.lines import mentions

TEXT = "IL-2 gene of [x] | cells"
PIECES = split(TEXT)
SEGMENT = Segment(document_id="d", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")
PLACES = st.integers(0, len(PIECES))
RANGES = st.lists(st.tuples(PLACES, PLACES).filter(lambda pair: pair[0] < pair[1]), min_size=1, max_size=5)
TYPES = ("protein", "dna", "cell_type")


def line(actions, logprob=lambda at, action, taken: -0.1 if taken else -3.0):
    """Steps with a log-probability for each admissible action, as a decoder settles them."""
    state, steps = State(len(PIECES)), []
    for at, action in enumerate(actions):
        admissible = state.admissible()
        decided = {a: logprob(at, a, a is action) for a in admissible} if len(admissible) > 1 else None
        steps.append(TypeLineStep(action, decided))
        state.apply(action)
    return steps


def offsets(span):
    return PIECES.cores[span[0]], PIECES.ends[span[1] - 1]


@given(RANGES)
def test_the_mentions_of_a_line_are_those_it_was_made_of(ranges):
    kept = nested_only(ranges)
    found = spans(len(PIECES), line(actions_of(len(PIECES), kept)))
    assert sorted(found) == sorted(kept)
    assert all(bracket in (0.0, -0.1) for both in found.values() for bracket in both)


def test_a_mention_has_the_log_probabilities_of_its_own_brackets():
    steps = line(actions_of(len(PIECES), [(0, 3), (0, 1)]), lambda at, _, taken: -float(at + 1) if taken else -9.0)
    assert spans(len(PIECES), steps) == {(0, 1): (-2.0, -4.0), (0, 3): (-1.0, -7.0)}


@pytest.mark.parametrize("inner", [-1.0, -3.0])
def test_a_mention_that_is_said_twice_is_as_probable_as_the_likelier(inner):
    said = [Action.OPEN, Action.OPEN, Action.COPY, Action.CLOSE, Action.CLOSE, *[Action.COPY] * (len(PIECES) - 1)]
    steps = line(said, lambda at, _, taken: (inner if at in (1, 3) else -2.0) if taken else -9.0)
    assert spans(len(PIECES), steps) == {(0, 1): (max(inner, -2.0),) * 2}


@given(RANGES, st.floats(-5.0, 0.0))
def test_brackets_that_were_passed_over_could_have_come_and_were_probable_enough(ranges, floor):
    steps = line(actions_of(len(PIECES), nested_only(ranges)))
    for found in passed_over(len(PIECES), steps, floor):
        assert found.action in (Action.OPEN, Action.CLOSE)
        assert found.action is not steps[found.at].action
        assert steps[found.at].logprobs[found.action] >= floor


def test_the_state_of_what_was_passed_over_is_that_before_it():
    seen = [
        (found.at, found.state.copied, found.action, found.logprob)
        for found in passed_over(
            2,
            [
                TypeLineStep(Action.OPEN, {Action.COPY: -1.0, Action.OPEN: -0.5}),
                TypeLineStep(Action.COPY, {Action.COPY: -0.2, Action.OPEN: -2.0}),
                TypeLineStep(Action.COPY, {Action.COPY: -0.2, Action.CLOSE: -1.5}),
            ],
            -9.0,
        )
    ]
    assert seen == [(1, 0, Action.OPEN, -2.0), (2, 1, Action.CLOSE, -0.5 - 1.5)]
    assert PassedOver._fields == ("at", "state", "action", "logprob")


def shares(**given):
    return {Action[name]: math.log(share) for name, share in given.items()}


def test_a_line_begins_with_the_most_probable_action():
    start = begun(shares(COPY=0.3, OPEN=0.6, ABSENT=0.1), 0.2)
    assert (start.forced, start.first.action) == (False, Action.OPEN)
    assert start.presence == pytest.approx(0.9)
    assert math.exp(start.first.logprobs[Action.OPEN]) == pytest.approx(0.6 / 0.9)
    assert Action.ABSENT not in start.first.logprobs


def test_an_absent_type_with_enough_of_a_chance_is_decoded_all_the_same():
    given_ = shares(COPY=0.2, OPEN=0.1, ABSENT=0.7)
    forced = begun(given_, 0.25)
    assert (forced.forced, forced.first.action) == (True, Action.COPY)
    assert forced.presence == pytest.approx(0.3)
    absent = begun(given_, 0.5)
    assert (absent.forced, absent.first.action, absent.first.logprobs) == (False, Action.ABSENT, given_)


def of_type(start, steps, beyond, floor):
    return type_line("protein", PIECES, start, steps, beyond, floor)


def test_candidates_are_what_the_line_does_not_have():
    steps = line(actions_of(len(PIECES), [(0, 3)]))
    made = of_type(TypeLineStart(1.0, False, steps[0]), steps, {(0, 3): -0.1, (3, 4): -0.3, (4, 5): -2.0}, -1.0)
    assert made.mentions == {offsets((0, 3)): (-0.1, -0.1)}
    start, end = offsets((3, 4))
    assert made.alternatives == (Alternative(start=start, end=end, type="protein", logprob=-0.3),)


def test_mentions_of_a_forced_line_are_candidates_weighed_by_presence():
    steps = line(actions_of(len(PIECES), [(0, 3)]), lambda at, action, taken: 0.0 if taken else -9.0)
    made = of_type(TypeLineStart(0.5, True, steps[0]), steps, {}, -2.0)
    assert (made.presence, made.mentions) == (0.5, {})
    (found,) = made.alternatives
    assert (found.start, found.end) == offsets((0, 3))
    assert found.logprob == pytest.approx(math.log(0.5))
    assert of_type(TypeLineStart(0.5, True, steps[0]), steps, {}, -0.5).alternatives == ()


@given(
    st.lists(st.tuples(RANGES, st.floats(0.5, 1.0), st.booleans()), min_size=1, max_size=len(TYPES)),
    st.floats(-3.0, 0.0),
)
def test_the_message_of_all_types_has_their_mentions_as_probable_as_they_were(given_, logprob):
    """Each type's in lines of its own, crossing those of other types or not."""
    lines, expected = [], {}
    for key, (ranges, presence, absent) in zip(TYPES, given_, strict=False):
        kept = nested_only(ranges)
        actions = [Action.ABSENT] if absent else actions_of(len(PIECES), kept)
        steps = line(actions, lambda at, action, taken: logprob if taken else -9.0)
        start = TypeLineStart(presence / 10 if absent else presence, False, steps[0])
        lines.append(type_line(key, PIECES, start, steps, {}, -1.0))
        own = {} if absent else spans(len(PIECES), steps)
        expected[key] = {offsets(s): pytest.approx(presence * math.exp(sum(both))) for s, both in own.items()}
    made = tagged_line(SEGMENT, lines)
    assert mentions(made) == expected
    assert made.presence == max(one.presence for one in lines)
    assert (made.segment, made.types) == (SEGMENT, TYPES[: len(lines)])


def test_mentions_of_two_types_that_cross_stand_in_two_rows():
    one, two = (TypeLine(key, 1.0, {span: (-0.5, -0.25)}, ()) for key, span in (("dna", (0, 9)), ("protein", (5, 12))))
    made = tagged_line(SEGMENT, [one, two])
    assert made.tagged == "[IL-2 gene | DNA] of \\[x\\] \\| cells\nIL-2 [gene of | Protein] \\[x\\] \\| cells"
    assert made.brackets == (-0.5, -0.25, -0.5, -0.25)


def test_the_rarer_type_pays_with_its_opening_bracket():
    lines = [TypeLine("dna", 0.5, {(0, 9): (-0.5, -0.25)}, ()), TypeLine("protein", 1.0, {(0, 4): (-1.0, -2.0)}, ())]
    made = tagged_line(SEGMENT, lines)
    assert made.tagged.startswith("[[IL-2 | Protein] gene | DNA]")
    assert made.brackets == pytest.approx((-0.5 - math.log(2), -1.0, -2.0, -0.25))


@pytest.mark.parametrize("forced", [True, False])
def test_the_message_of_absent_types_is_empty(forced):
    steps = line(actions_of(len(PIECES), [(0, 3)]) if forced else [Action.ABSENT])
    made = tagged_line(SEGMENT, [of_type(TypeLineStart(0.1, forced, steps[0]), steps, {(0, 1): -0.5}, -9.0)])
    assert (made.tagged, made.brackets, made.presence) == ("", (), 0.1)
    found = {(a.start, a.end, a.type): a.logprob for a in made.alternatives}
    candidate = (*offsets((0, 1)), "protein")
    if forced:
        own = sum(spans(len(PIECES), steps)[0, 3])
        both = {candidate: -0.5 + math.log(0.1), (*offsets((0, 3)), "protein"): own + math.log(0.1)}
        assert found == pytest.approx(both)
    else:
        assert found == {candidate: -0.5}


def test_no_types_make_an_empty_message():
    made = tagged_line(SEGMENT, [])
    assert (made.tagged, made.types, made.presence, made.alternatives) == ("", (), 0.0, ())
