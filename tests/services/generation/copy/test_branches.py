"""Candidates beyond the greedy line."""

from __future__ import annotations

import math

import pytest

from services.generation.engine import TagRequest
from shared.text.grammar import ABSENT, CLOSE, COPY, OPEN
from shared.text.pieces import split
from tests.support.copying import TEXTS, TYPES, decided, greedy, made, segment


@pytest.mark.parametrize("floor", [0.005, 0.05])
def test_candidates_do_not_depend_on_how_many_tokens_are_looked_at_together(folder, floor):
    """Who looks at few tokens stops where no later closing bracket can count; of many, all are looked at."""
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS)]
    few, many = (
        made(folder, candidate_floor=floor, branch_pieces=8, lookahead=lookahead).tag(requests)
        for lookahead in (1, 256)
    )
    found = [
        [{(a.start, a.end, a.type): a.logprob for a in line.alternatives} for line in lines] for lines in (few, many)
    ]
    assert any(found[0])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_candidate_is_as_probable_as_plain_decoding_says(folder, reference):
    """By passes over whole sequences, for one of the ways in which its brackets can leave the greedy line."""
    text, floor = TEXTS[1], 0.02
    (line,) = made(folder, candidate_floor=floor, branch_pieces=8).tag([TagRequest(segment(text), TYPES)])
    script, actions, _ = greedy(reference, text, TYPES)
    if actions == [ABSENT]:
        pytest.skip("this model finds nothing in the text")
    pieces = split(text)
    for found in line.alternatives[:4]:  # each takes many passes
        first, last = pieces.cores.index(found.start), pieces.ends.index(found.end) + 1
        label = script.labels.path(TYPES.index(found.type))
        ways = []
        state, opened = script.begin(), []
        for at, action in enumerate(actions):
            if state.node is None:
                if state.copied == first:
                    way = [*actions[:at], OPEN, *[COPY] * (last - first), CLOSE, *label]
                    # That another mention could begin at the same place makes this one no less probable.
                    ways.append((way, [at, *range(at + 2, len(way))]))
                if state.copied == last and state.open and state.open[-1] == first:
                    way = [*actions[:at], CLOSE, *label]
                    ways.append((way, [opened[-1], *range(at, len(way))]))
            if action == OPEN:
                opened.append(at)
            if state.apply(action) is not None:
                opened.pop()
        # The engine gives the first action's probability on condition that there is a mention.
        probable = [
            forced(reference, script, way, counted) - (math.log(line.presence) if 0 in counted else 0.0)
            for way, counted in ways
        ]
        assert any(found.logprob == pytest.approx(one, abs=1e-3) for one in probable)


def forced(reference, script, actions, counted):
    """The log-probability of some of a way's actions, given all before each."""
    ids, state, total = list(script.prompt()), script.begin(), 0.0
    for at, action in enumerate(actions):
        if action not in state.admissible():
            return -math.inf
        if at in counted:
            total += decided(reference, script, ids, state)[action]
        ids += script.ids(state, action)
        state.apply(action)
    return total
