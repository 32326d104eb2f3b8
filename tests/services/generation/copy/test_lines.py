from __future__ import annotations

import math

import pytest

from services.generation.copy.lines import Start, Step, alternatives, mentions, start, tagged_line
from shared.messages import Segment
from shared.text.grammar import ABSENT, CLOSE, COPY, LABEL, OPEN, Labels, LineState, actions_of
from shared.text.pieces import split
from shared.text.tagging import decode

TEXT = "IL-2 gene of [x] cells"
PIECES = split(TEXT)
SEGMENT = Segment(document_id="d", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")
TYPES = ("protein", "dna")
SPANS = {(0, 3, "protein"), (0, 4, "dna")}


@pytest.fixture
def labels(tokens):
    return Labels(tokens, TYPES, "en")


def steps_of(labels, spans, logprob=-0.1):
    """Steps of a line, each decision of which has that log-probability."""
    state, steps = LineState(len(PIECES), labels.root), []
    for action in actions_of(len(PIECES), spans, labels):
        admissible = state.admissible()
        steps.append(Step(action, dict.fromkeys(admissible, logprob) if len(admissible) > 1 else None))
        state.apply(action)
    return steps


def shares(**given):
    names = {"copy": COPY, "open": OPEN, "absent": ABSENT}
    return {names[name]: math.log(share) for name, share in given.items()}


def test_a_line_begins_with_the_most_probable_action():
    begin = start(shares(copy=0.3, open=0.6, absent=0.1), 0.2)
    assert (begin.forced, begin.first.action) == (False, OPEN)
    assert begin.presence == pytest.approx(0.9)
    assert math.exp(begin.first.logprob) == pytest.approx(0.6 / 0.9)
    assert ABSENT not in begin.first.logprobs


def test_a_segment_with_enough_of_a_chance_of_a_mention_is_decoded_all_the_same():
    given = shares(copy=0.2, open=0.1, absent=0.7)
    forced = start(given, 0.25)
    assert (forced.forced, forced.first.action) == (True, COPY)
    assert forced.presence == pytest.approx(0.3)
    absent = start(given, 0.5)
    assert (absent.forced, absent.first.action, absent.first.logprobs) == (False, ABSENT, given)


def test_a_mention_is_as_probable_as_its_brackets_and_its_type(labels):
    steps = steps_of(labels, SPANS)
    found = mentions(LineState(len(PIECES), labels.root), labels, steps)
    assert found.keys() == SPANS
    decided = {key: sum(step.logprobs is not None for step in steps if step.action >= LABEL) for key in TYPES}
    for (_, _, key), logprob in found.items():
        assert -0.1 * (2 + decided[key]) - 1e-9 <= logprob <= -0.2


def test_the_message_has_the_text_and_a_number_for_each_bracket(labels):
    steps = steps_of(labels, SPANS)
    line = tagged_line(SEGMENT, PIECES, labels, Start(0.9, False, steps[0]), steps)
    text, found = decode(line.tagged)
    assert text == TEXT
    assert set(found) == {(0, 4, "Protein"), (0, 9, "DNA")}
    assert len(line.brackets) == 4
    assert (line.types, line.presence) == (TYPES, 0.9)
    openings = sum(step.logprob for step in steps if step.action in (OPEN, CLOSE) or step.action >= LABEL)
    assert sum(line.brackets) == pytest.approx(openings)


@pytest.mark.parametrize("forced", [True, False])
def test_the_message_without_a_greedy_mention_is_empty(labels, forced):
    steps = steps_of(labels, SPANS) if forced else [Step(ABSENT, None)]
    line = tagged_line(SEGMENT, PIECES, labels, Start(0.1, forced, steps[0]), steps)
    assert (line.tagged, line.brackets, line.presence) == ("", (), 0.1)


def test_candidates_are_what_the_line_does_not_have():
    own = {(0, 3, "protein"): -0.2}
    beyond = {(0, 3, "protein"): -0.1, (0, 3, "dna"): -0.3, (4, 5, "dna"): -2.0}
    (found,) = alternatives(PIECES, Start(1.0, False, Step(COPY, None)), own, beyond, -1.0)
    assert (found.start, found.end, found.type, found.logprob) == (0, 4, "dna", -0.3)


def test_mentions_of_a_forced_line_are_candidates_weighed_by_presence():
    begin = Start(0.5, True, Step(COPY, None))
    (found,) = alternatives(PIECES, begin, {(0, 3, "protein"): -0.2}, {}, -2.0)
    assert found.logprob == pytest.approx(math.log(0.5) - 0.2)
    assert alternatives(PIECES, begin, {(0, 3, "protein"): -0.2}, {}, -0.5) == ()
