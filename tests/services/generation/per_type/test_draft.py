"""Drafts against a model that is made up: whatever it would say, action by action, is what a line becomes."""

from __future__ import annotations

import random

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3TextConfig

from services.generation.per_type.draft import DraftedLine, Drafter, Prefix, completed
from services.generation.per_type.lines import TypeLineStart, TypeLineStep
from shared.messages import Segment
from shared.model.cache import Cache
from shared.text.per_type import Action, State, actions_of, nested_only
from shared.text.pieces import split

TEXT = "IL-2 gene [x] of 右肺\\ cells"
PIECES = split(TEXT)
PLACES = st.integers(0, len(PIECES))
RANGES = st.lists(st.tuples(PLACES, PLACES).filter(lambda pair: pair[0] < pair[1]), min_size=1, max_size=8)


def empty():
    sizes = {"num_hidden_layers": 1, "num_key_value_heads": 1, "num_attention_heads": 1, "head_dim": 2}
    return Cache(Gemma3TextConfig(**sizes, layer_types=["full_attention"]), torch.float32)


def begun(tokens, cache, first, room):
    """A line whose first action is settled, with prefix and header in the cache."""
    segment = Segment(document_id="d", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")
    prefix, header = Prefix(segment, PIECES, tokens.prefix(PIECES)), tokens.header("Protein")
    step = TypeLineStep(first, dict.fromkeys(State(len(PIECES)).admissible(), -1.0))
    line = DraftedLine(prefix, "protein", header, TypeLineStart(1.0, False, step), State(len(PIECES)), done=len(header))
    line.accept(step)
    line.draft = completed(line.state, [])
    line.room = len(prefix.ids) + len(header) + room
    line.slot = cache.take(line.room)
    return line


def wishes(line, target, draw):
    """The log-probabilities of each decision of a pass: for the target where the draft has kept to it so far."""
    before = [step.action for step in line.steps]
    for pending in line.pending:
        if pending.options:
            on_the_way = before == target[: len(before)]
            wish = target[len(before)] if on_the_way else draw.choice(pending.options)
            yield [-0.1 if option is wish else -5.0 for option in pending.options]
        before.append(pending.action)


@given(ranges=RANGES, lookahead=st.sampled_from([1, 6, 256]), room=st.sampled_from([0, 400]), seed=st.integers())
def test_a_line_becomes_what_the_model_says(per_type_tokens, ranges, lookahead, room, seed):
    cache = empty()
    target, draw = actions_of(len(PIECES), nested_only(ranges)), random.Random(seed)
    drafter = Drafter(per_type_tokens, lookahead, torch.device("cpu"))
    line = begun(per_type_tokens, cache, target[0], room)
    head = len(line.prefix.ids) + len(line.header)
    written = dict(enumerate([*line.prefix.ids, *line.header]))  # what the cache has, by position
    said = [token for _, ids in per_type_tokens.steps(PIECES, target) for token in ids]
    while line.draft:
        settled, part = len(line.steps), drafter.prepare(line, cache)
        if part is None:
            assert not any(pending.options for pending in line.pending)
            drafter.check(line, [])
        else:
            assert part.slot == line.slot
            assert line.past + len(part.ids) <= line.room
            assert part.past == part.positions[0] == line.past <= len(written)
            written |= dict(zip(part.positions, part.ids, strict=True))
            # A decision is read at the token before it, which is the last of the line so far.
            drafted = [*(step.action for step in line.steps), *(p.action for p in line.pending)]
            tokens = [token for _, ids in per_type_tokens.steps(PIECES, drafted) for token in ids]
            done = line.done - len(line.header)
            assert list(part.ids) == tokens[done : done + len(part.ids)]
            asked = [pending for pending in line.pending if pending.options]
            assert [first for _, first in part.asked] == [pending.first_ids for pending in asked]
            drafter.check(line, list(wishes(line, target, draw)))
        assert len(line.steps) > settled  # each pass settles something
        assert [step.action for step in line.steps] == target[: len(line.steps)]
        known = [written[at] for at in range(head, len(line.prefix.ids) + line.done)]
        assert known == said[: len(known)]
    assert [step.action for step in line.steps] == target
    assert line.state.admissible() == ()


def test_a_right_draft_takes_one_pass(per_type_tokens):
    drafter = Drafter(per_type_tokens, 256, torch.device("cpu"))
    target, cache = [Action.COPY] * len(PIECES), empty()
    line = begun(per_type_tokens, cache, Action.COPY, 400)
    drafter.prepare(line, cache)
    drafter.check(line, list(wishes(line, target, random.Random(0))))
    assert line.draft == []
    assert [step.action for step in line.steps] == target


def test_a_pass_looks_at_so_many_tokens_and_no_more(per_type_tokens):
    cache, sizes = empty(), []
    for lookahead in (1, 6, 256):
        line = begun(per_type_tokens, cache, Action.COPY, 400)
        sizes.append(len(Drafter(per_type_tokens, lookahead, torch.device("cpu")).prepare(line, cache).ids))
    assert sizes[0] < sizes[1] < sizes[2]
    longest = max(len(per_type_tokens.copy(PIECES, i, after_open=False)) for i in range(len(PIECES)))
    assert sizes[0] <= 1 + longest
    assert sizes[1] <= 6 + longest


@given(st.lists(st.sampled_from(list(Action)), max_size=12), RANGES, st.data())
def test_any_guess_becomes_the_rest_of_a_line(guess, ranges, data):
    actions = actions_of(len(PIECES), nested_only(ranges))
    behind = data.draw(st.integers(1, len(actions)))
    state = State(len(PIECES))
    for action in actions[:behind]:
        state.apply(action)
    rest = completed(state, guess)
    assert completed(state, actions[behind:]) == actions[behind:]
    for action in rest:
        assert action in state.admissible()
        state.apply(action)
    assert state.admissible() == ()
