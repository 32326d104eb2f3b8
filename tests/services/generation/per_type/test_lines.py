import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from services.generation.lines import PassedOver, Start, Step, alternatives, begun, passed_over, spans, tagged_line

from shared.messages import Alternative, Segment
from shared.text.grammar import Action, State, actions_of, nested_only
from shared.text.pieces import split
from shared.text.tagging import decode

TEXT = "IL-2 gene of [x] cells"
PIECES = split(TEXT)
SEGMENT = Segment(document_id="d", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")
PLACES = st.integers(0, len(PIECES))
RANGES = st.lists(st.tuples(PLACES, PLACES).filter(lambda pair: pair[0] < pair[1]), min_size=1, max_size=5)


def line(actions, logprob=lambda at, action, taken: -0.1 if taken else -3.0):
    """Steps with a log-probability for each admissible action, as a decoder settles them."""
    state, steps = State(len(PIECES)), []
    for at, action in enumerate(actions):
        admissible = state.admissible()
        decided = {a: logprob(at, a, a is action) for a in admissible} if len(admissible) > 1 else None
        steps.append(Step(action, decided))
        state.apply(action)
    return steps


@given(RANGES)
def test_the_mentions_of_a_line_are_those_it_was_made_of(ranges):
    kept = nested_only(ranges)
    found = spans(len(PIECES), line(actions_of(len(PIECES), kept)))
    assert sorted(span for span, _ in found) == sorted(kept)
    assert all(-0.2 - 1e-9 <= logprob <= 0.0 for _, logprob in found)


def test_a_mention_is_as_sure_as_both_of_its_brackets():
    steps = line(actions_of(len(PIECES), [(0, 1)]), lambda at, action, taken: -float(at + 1) if taken else -9.0)
    assert spans(len(PIECES), steps) == [((0, 1), -1.0 - 3.0)]


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
                Step(Action.OPEN, {Action.COPY: -1.0, Action.OPEN: -0.5}),
                Step(Action.COPY, {Action.COPY: -0.2, Action.OPEN: -2.0}),
                Step(Action.COPY, {Action.COPY: -0.2, Action.CLOSE: -1.5}),
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


def test_candidates_are_what_the_line_does_not_have():
    steps = line(actions_of(len(PIECES), [(0, 3)]))
    start = Start(1.0, False, steps[0])
    (found,) = alternatives(PIECES, start, steps, {(0, 3): -0.1, (3, 4): -0.3, (4, 5): -2.0}, -1.0)
    assert (found.start, found.end, found.logprob) == (PIECES.cores[3], PIECES.ends[3], -0.3)


def test_mentions_of_a_forced_line_are_candidates_weighed_by_presence():
    steps = line(actions_of(len(PIECES), [(0, 3)]), lambda at, action, taken: 0.0 if taken else -9.0)
    (found,) = alternatives(PIECES, Start(0.5, True, steps[0]), steps, {}, -2.0)
    assert (found.start, found.end) == (PIECES.cores[0], PIECES.ends[2])
    assert found.logprob == pytest.approx(math.log(0.5))
    assert alternatives(PIECES, Start(0.5, True, steps[0]), steps, {}, -0.5) == ()


@given(RANGES)
def test_the_message_of_a_line_has_its_text_and_a_number_for_each_bracket(ranges):
    kept = nested_only(ranges)
    steps = line(actions_of(len(PIECES), kept))
    made = tagged_line(SEGMENT, "protein", PIECES, Start(0.9, False, steps[0]), steps, ())
    text, found = decode(made.tagged)
    assert text == TEXT
    assert sorted(found) == sorted((PIECES.cores[s], PIECES.ends[e - 1]) for s, e in kept)
    assert len(made.brackets) == 2 * len(kept)
    assert all(logprob <= 0.0 for logprob in made.brackets)


@pytest.mark.parametrize("forced", [True, False])
def test_the_message_of_an_absent_type_is_empty(forced):
    steps = line(actions_of(len(PIECES), [(0, 3)]) if forced else [Action.ABSENT])
    other = Alternative(start=0, end=2, logprob=-1.0)
    made = tagged_line(SEGMENT, "protein", PIECES, Start(0.1, forced, steps[0]), steps, (other,))
    assert (made.tagged, made.brackets, made.presence, made.alternatives) == ("", (), 0.1, (other,))
