"""Candidates beyond the greedy line: what its decisions came near to.

An opening bracket that was not taken is followed to where it would most likely close, a closing bracket that was not
taken to its label; a label's other types stand in the line's own decisions. All branches of a line grow side by side in
the slots behind it, each seeing the line up to where it leaves it and its own tokens (tree attention, as in SpecInfer,
Miao et al. 2023, arXiv 2305.09781).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from services.generation.copy.draft import Line, make_room
from services.generation.copy.forward import Answer, Part, Task
from shared.model.cache import Cache
from shared.text.grammar import CLOSE, COPY, LABEL, OPEN, Labels, LineState, Node, Script, Typed


@dataclass(slots=True)
class Found:
    """A candidate: the log-probability of its brackets and type, and the hidden states that tell how right it is.

    ``states``: of the tokens before its opening bracket, of that, before its bar, and of the bar; none where one of
    them was not computed.
    """

    logprob: float
    states: tuple[Tensor, Tensor, Tensor, Tensor] | None


class _Ask(NamedTuple):
    """What a branch wants next: tokens behind the first ``kept`` of its own, and decisions as in a :class:`Part`."""

    kept: int
    ids: list[int]
    asked: list[tuple[int, tuple[int, ...]]]


_Growth: TypeAlias = Generator[_Ask, Answer, None]


@dataclass(slots=True)
class _Branch:
    """``before``: tokens of prompt and line that it sees; ``slots`` and ``states``: of its own tokens, in order."""

    before: int
    growth: _Growth
    ask: _Ask
    slots: list[int] = field(default_factory=list)


def greedy(line: Line) -> dict[Typed, Found]:
    """The mentions of the line itself."""
    return {mention.span: mention.found for mention in _mentions(line)}


def beyond(line: Line, floor: float, longest: int, lookahead: int, cache: Cache) -> Task[dict[Typed, Found]]:
    """The candidates that the line did not take, with at least ``floor``, a log-probability.

    ``longest``: pieces of a mention that an opening bracket is followed for.
    """
    found: dict[Typed, Found] = {}
    branches: list[_Branch] = []
    for at, state, logprob, opening in _passed_over(line, floor):
        before = line.prompt + line.tokens[at]
        if line.tokens[at] > line.done:
            continue  # behind the last decision of the line
        if opening is None:
            growth = _opened(line, state, at, logprob, floor, longest, lookahead, found)
        else:
            growth = _labelled(line.script, state, 0, logprob, floor, _opening_states(line, opening, at), found)
        branches.append(_Branch(before, growth, next(growth)))
    for mention in _mentions(line):
        for span, logprob in _other_types(mention, line.script.labels, floor):
            _keep(found, span, Found(logprob, mention.found.states))
    grown = 0
    while branches:
        total = sum(len(branch.ask.ids) for branch in branches)
        make_room(line, line.past + grown, total, cache)
        (answer,) = yield [_part(line, branches, grown)]
        grown += total
        branches = _grow(branches, answer)
    return found


def _part(line: Line, branches: Sequence[_Branch], grown: int) -> Part:
    """The next tokens of all branches, which go into the slots behind the line and what has grown before."""
    past = line.past + grown
    total = sum(len(branch.ask.ids) for branch in branches)
    mask = torch.zeros(total, past + total, dtype=torch.bool)
    ids: list[int] = []
    positions: list[int] = []
    asked: list[tuple[int, tuple[int, ...]]] = []
    for branch in branches:
        first, ask = len(ids), branch.ask
        n = len(ask.ids)
        rows = mask[first : first + n]
        rows[:, : branch.before] = True
        rows[:, [line.past + slot for slot in branch.slots[: ask.kept]]] = True
        rows[:, past + first : past + first + n] = torch.ones(n, n, dtype=torch.bool).tril()
        del branch.slots[ask.kept :]
        branch.slots += range(grown + first, grown + first + n)
        ids += ask.ids
        positions += range(branch.before + ask.kept, branch.before + ask.kept + n)
        asked += [(first + token, options) for token, options in ask.asked]
    device = line.states[0].device
    return Part(ids, positions, mask.to(device), line.slot, past, asked, range(total))


def _grow(branches: Sequence[_Branch], answer: Answer) -> list[_Branch]:
    """Gives each branch its share of an answer; those that go on."""
    left = []
    asked = token = 0
    for branch in branches:
        n, m = len(branch.ask.asked), len(branch.ask.ids)
        own = Answer(answer.logprobs[asked : asked + n], answer.states[token : token + m])
        asked, token = asked + n, token + m
        try:
            branch.ask = branch.growth.send(own)
        except StopIteration:
            continue
        left.append(branch)
    return left


def _keep(found: dict[Typed, Found], span: Typed, one: Found) -> None:
    if span not in found or one.logprob > found[span].logprob:
        found[span] = one


# What the line itself tells.


class _Mention(NamedTuple):
    """``logprob``: of both brackets, without the label; ``labels``: the decisions on its label."""

    span: Typed
    found: Found
    logprob: float
    labels: list[tuple[Node, int, dict[int, float] | None]]


def _mentions(line: Line) -> Iterator[_Mention]:
    state = line.script.begin()
    opened: list[tuple[int, float]] = []
    closing, bar = 0.0, 0
    labels: list[tuple[Node, int, dict[int, float] | None]] = []
    for at, step in enumerate(line.steps):
        if step.action == OPEN:
            opened.append((at, step.logprob))
        elif step.action == CLOSE:
            closing, bar, labels = step.logprob, at, []
        elif step.action >= LABEL and state.node is not None:
            labels.append((state.node, step.action, step.logprobs))
        if (closed := state.apply(step.action)) is not None:
            opening, logprob = opened.pop()
            first, last, type_ = closed
            whole = logprob + closing + sum(lp[action] for _, action, lp in labels if lp is not None)
            bars = line.tokens[bar] + len(line.script.tokens.bar) - 1
            tokens = (*_opening_tokens(line, opening), line.tokens[bar] - 1, bars)
            states = None
            if max(tokens) + 1 < len(line.states):
                before, bracket, last_, at_bar = (line.states[token + 1] for token in tokens)
                states = (before, bracket, last_, at_bar)
            span = (first, last, line.script.labels.types[type_])
            yield _Mention(span, Found(whole, states), logprob + closing, labels)


def _opening_tokens(line: Line, at: int) -> tuple[int, int]:
    """The tokens before and of an opening bracket, by its step."""
    return line.tokens[at] - 1, line.tokens[at + 1] - 1


def _opening_states(line: Line, opening: int, at: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The states before and of the opening bracket of step ``opening``, and before step ``at``."""
    tokens = (*_opening_tokens(line, opening), line.tokens[at] - 1)
    if max(tokens) + 1 >= len(line.states):
        return None
    before, bracket, last = (line.states[token + 1] for token in tokens)
    return before, bracket, last


def _other_types(mention: _Mention, labels: Labels, floor: float) -> Iterator[tuple[Typed, float]]:
    """The types that a mention's label did not say; of those that begin alike, only where the label did too."""
    first, last, _ = mention.span
    logprob = mention.logprob
    for node, taken, logprobs in mention.labels:
        for action, other in (logprobs or {}).items():
            branch = node[action - LABEL]
            if action != taken and branch.node is None and logprob + other >= floor:
                (type_,) = branch.types
                yield (first, last, labels.types[type_]), logprob + other
        logprob += 0.0 if logprobs is None else logprobs[taken]


def _passed_over(line: Line, floor: float) -> Iterator[tuple[int, LineState, float, int | None]]:
    """Brackets that were not taken: step and state before it, log-probability, and of a closing its opening's step."""
    state = line.script.begin()
    opened: list[int] = []
    for at, step in enumerate(line.steps):
        for action, logprob in (step.logprobs or {}).items():
            if action == step.action or state.node is not None:
                continue
            if action == OPEN and logprob >= floor:
                yield at, state.copy(), logprob, None
            elif action == CLOSE and (whole := line.steps[opened[-1]].logprob + logprob) >= floor:
                yield at, state.copy(), whole, opened[-1]
        if step.action == OPEN:
            opened.append(at)
        if state.apply(step.action) is not None:
            opened.pop()


# How branches grow.


def _labelled(
    script: Script,
    state: LineState,
    kept: int,
    logprob: float,
    floor: float,
    states: tuple[Tensor, Tensor, Tensor] | None,
    found: dict[Typed, Found],
) -> _Growth:
    """The types of a mention that closes here: those of the tree's nodes along the likeliest way down.

    ``state``: before the closing bracket; ``kept``: tokens of the branch so far; ``states``: of the opening bracket and
    before the closing one.
    """
    first, last = state.open[-1], state.copied
    ids = script.ids(state, CLOSE)
    state.apply(CLOSE)
    whole: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    while True:
        actions, options = script.options(state)
        if state.node is None:
            return
        if len(actions) == 1 and whole is not None:
            said, own = {actions[0]: 0.0}, None
        else:
            own = yield _Ask(kept, list(ids), [(len(ids) - 1, options)])
            kept += len(ids)
            said = dict(zip(actions, own.logprobs[0], strict=True))
        if whole is None and own is not None and states is not None:
            whole = (*states, own.states[len(script.tokens.bar) - 1])
        going = None
        for action, other in said.items():
            branch = state.node[action - LABEL]
            if branch.node is None:
                (type_,) = branch.types
                if logprob + other >= floor:
                    _keep(found, (first, last, script.labels.types[type_]), Found(logprob + other, whole))
            elif going is None or other > said[going]:
                going = action
        if going is None or logprob + said[going] < floor:
            return
        logprob += said[going]
        ids = script.ids(state, going)
        state.apply(going)


def _opened(
    line: Line,
    state: LineState,
    at: int,
    logprob: float,
    floor: float,
    longest: int,
    lookahead: int,
    found: dict[Typed, Found],
) -> _Growth:
    """A mention that opens here: followed to its likeliest end, then to its types.

    It is left as soon as no later end can be as likely as the best one or the floor.
    """
    script = line.script
    before = line.states[line.tokens[at]]
    ids = list(script.ids(state, OPEN))
    bracket = len(ids) - 1
    state.apply(OPEN)
    first = state.copied
    best: tuple[float, int, LineState] | None = None  # log-probability, own tokens before the closing, state
    states: list[Tensor] = []
    kept = 0
    while state.copied < state.pieces and state.copied - first < longest:
        ends: list[tuple[int, LineState, tuple[int, ...]]] = []
        asked: list[tuple[int, tuple[int, ...]]] = []
        while state.copied < state.pieces and state.copied - first < longest:
            ids += script.ids(state, COPY)
            state.apply(COPY)
            actions, options = script.options(state)
            asked.append((len(ids) - 1, options))
            ends.append((kept + len(ids), state.copy(), actions))
            if len(ids) >= lookahead:
                break
        answer = yield _Ask(kept, ids, asked)
        states += answer.states
        kept += len(ids)
        ids = []
        for (tokens, there, actions), logprobs in zip(ends, answer.logprobs, strict=True):
            said = dict(zip(actions, logprobs, strict=True))
            closing = logprob + said.get(CLOSE, -math.inf)
            if best is None or closing > best[0]:
                best = (closing, tokens, there)
            logprob += said.get(COPY, -math.inf)
        if logprob < max(floor, best[0] if best else floor):
            break
    if best is None or best[0] < floor:
        return
    closing, tokens, there = best
    triple = (before, states[bracket], states[tokens - 1])
    yield from _labelled(script, there, tokens, closing, floor, triple, found)
