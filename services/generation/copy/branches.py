"""Candidates beyond the greedy line: near misses of its decisions.

An opening bracket that was not taken is followed to where it would most likely close, a closing bracket that was not
taken to its label; a label's other types stand in the line's own decisions. All branches of a line grow in parallel
in the slots after it, each attending to the line up to where it leaves it and to its own tokens (tree attention, as in
SpecInfer, Miao et al. 2023, arXiv 2305.09781).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch

from services.generation.copy.draft import Line, make_room
from services.generation.copy.forward import Answer, Part, Task
from services.generation.copy.lines import Step
from shared.model.cache import Cache
from shared.text.grammar import CLOSE, COPY, LABEL, OPEN, Action, LineState, Script, Typed


class _Ask(NamedTuple):
    """What a branch needs next: tokens after the first ``kept`` of its own, and decisions as in a :class:`Part`."""

    kept: int
    ids: list[int]
    asked: list[tuple[int, tuple[int, ...]]]


_Growth: TypeAlias = Generator[_Ask, Answer, None]
_Found: TypeAlias = dict[Typed, float]


@dataclass(slots=True)
class _Branch:
    """``before``: tokens of prompt and line that it attends to; ``slots``: of its tokens, after the line, in order."""

    before: int
    growth: _Growth
    ask: _Ask
    slots: list[int] = field(default_factory=list)


def beyond(line: Line, floor: float, longest: int, lookahead: int, cache: Cache, device: torch.device) -> Task[_Found]:
    """The candidates that a line did not take, with log-probabilities of at least ``floor``.

    ``longest``: the most pieces of a mention for which an opening bracket is followed.
    """
    found = other_types(line.script, line.steps, floor)
    branches: list[_Branch] = []
    for at, state, action, logprob in passed_over(line.script, line.steps, floor):
        if line.tokens[at] > line.done:
            continue  # after the last decision of the line
        if action == OPEN:
            growth = _opened(line.script, state, logprob, floor, longest, lookahead, found)
        else:
            growth = _labelled(line.script, state, 0, logprob, floor, found)
        if (ask := next(growth, None)) is not None:  # empty if only one type was requested
            branches.append(_Branch(line.prompt + line.tokens[at], growth, ask))
    grown = 0
    while branches:
        total = sum(len(branch.ask.ids) for branch in branches)
        make_room(line, line.past + grown, total, cache)
        (answer,) = yield [_part(line, branches, grown, device)]
        grown += total
        branches = _grow(branches, answer)
    return found


def _part(line: Line, branches: Sequence[_Branch], grown: int, device: torch.device) -> Part:
    """The next tokens of all branches, which go into the slots after the line and after earlier branch tokens."""
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
    return Part(ids, positions, mask.to(device), line.slot, past, asked)


def _grow(branches: Sequence[_Branch], answer: Answer) -> list[_Branch]:
    """Gives each branch its share of an answer; returns those that continue."""
    left = []
    begin = 0
    for branch in branches:
        end = begin + len(branch.ask.asked)
        try:
            branch.ask = branch.growth.send(answer[begin:end])
        except StopIteration:
            continue
        finally:
            begin = end
        left.append(branch)
    return left


def _keep(found: _Found, span: Typed, logprob: float) -> None:
    found[span] = max(found.get(span, -math.inf), logprob)


# What follows from the line itself.


def other_types(script: Script, steps: Iterable[Step], floor: float) -> _Found:
    """The types that labels did not choose; of names with a common prefix, only where the label shares that prefix."""
    state, types = script.begin(), script.labels.types
    opened: list[float] = []
    logprob = 0.0
    found: _Found = {}
    for step in steps:
        if step.action == OPEN:
            opened.append(step.logprob)
        elif step.action == CLOSE:
            logprob = opened.pop() + step.logprob
        elif step.action >= LABEL and state.node is not None:
            for action, other in (step.logprobs or {}).items():
                branch = state.node[action - LABEL]
                if action != step.action and branch.node is None and logprob + other >= floor:
                    (type_,) = branch.types
                    _keep(found, (state.open[-1], state.copied, types[type_]), logprob + other)
            logprob += step.logprob
        state.apply(step.action)
    return found


def passed_over(script: Script, steps: Iterable[Step], floor: float) -> Iterator[tuple[int, LineState, Action, float]]:
    """Brackets not taken: step, state before it, action, log-probability (a closing bracket's includes its opening)."""
    state = script.begin()
    opened: list[float] = []
    for at, step in enumerate(steps):
        for action, logprob in (step.logprobs or {}).items():
            if action == step.action or state.node is not None:
                continue
            if action == OPEN and logprob >= floor:
                yield at, state.copy(), action, logprob
            elif action == CLOSE and opened[-1] + logprob >= floor:
                yield at, state.copy(), action, opened[-1] + logprob
        if step.action == OPEN:
            opened.append(step.logprob)
        if state.apply(step.action) is not None:
            opened.pop()


# How branches grow.


def _labelled(script: Script, state: LineState, kept: int, logprob: float, floor: float, found: _Found) -> _Growth:
    """The types of a mention that closes here: those at the nodes of the tree along the likeliest way down.

    ``state``: before the closing bracket; ``kept``: tokens of the branch so far.
    """
    first, last = state.open[-1], state.copied
    ids: list[int] = []
    following = CLOSE
    while True:
        ids += script.ids(state, following)
        state.apply(following)
        if state.node is None:
            return
        actions, options = script.options(state)
        if len(actions) == 1:
            said = {actions[0]: 0.0}
        else:
            (logprobs,) = yield _Ask(kept, ids, [(len(ids) - 1, options)])
            kept, ids = kept + len(ids), []
            said = dict(zip(actions, logprobs, strict=True))
        going = None
        for action, other in said.items():
            branch = state.node[action - LABEL]
            if branch.node is not None:
                going = action if going is None or other > said[going] else going
            elif logprob + other >= floor:
                (type_,) = branch.types
                _keep(found, (first, last, script.labels.types[type_]), logprob + other)
        if going is None or logprob + said[going] < floor:
            return
        logprob, following = logprob + said[going], going


def _opened(
    script: Script, state: LineState, logprob: float, floor: float, longest: int, lookahead: int, found: _Found
) -> _Growth:
    """A mention that opens here: followed to its likeliest end, then to its types.

    It is abandoned as soon as no later end can be as likely as the best one or the floor.
    """
    ids = list(script.ids(state, OPEN))
    state.apply(OPEN)
    first = state.copied
    best, there, tokens = -math.inf, state, 0  # log-probability, state and own tokens before the closing bracket
    kept = 0
    while state.copied < state.pieces and state.copied - first < longest and logprob >= max(floor, best):
        ends: list[tuple[int, LineState, tuple[int, ...]]] = []
        asked: list[tuple[int, tuple[int, ...]]] = []
        while state.copied < state.pieces and state.copied - first < longest and (not ids or len(ids) < lookahead):
            ids += script.ids(state, COPY)
            state.apply(COPY)
            actions, options = script.options(state)
            asked.append((len(ids) - 1, options))
            ends.append((kept + len(ids), state.copy(), actions))
        answer = yield _Ask(kept, ids, asked)
        kept, ids = kept + len(ids), []
        for (so_far, after, actions), logprobs in zip(ends, answer, strict=True):
            said = dict(zip(actions, logprobs, strict=True))
            if logprob + said.get(CLOSE, -math.inf) > best:
                best, there, tokens = logprob + said.get(CLOSE, -math.inf), after, so_far
            logprob += said.get(COPY, -math.inf)
    if best >= floor:
        yield from _labelled(script, there, tokens, best, floor, found)
