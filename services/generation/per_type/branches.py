"""Candidates beyond the greedy line of one type: brackets that were not taken but had a chance."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from services.generation.copy.forward import Part, Task, side_by_side
from services.generation.per_type.draft import DraftedLine, Drafter
from services.generation.per_type.lines import Range, passed_over
from shared.model.cache import Cache
from shared.model.masks import causal
from shared.text.per_type import Action, PerTypeTokens, State
from shared.text.pieces import Pieces


@dataclass(slots=True)
class Branch:
    """A mention opened where the greedy line did not, to see where it would close."""

    start: int  # piece that it begins at
    opened: float  # log-probability of opening it
    before: int  # tokens before the bracket, the prefix's too
    ids: list[int]
    closes: list[Close]


class Close(NamedTuple):
    """A decision of a branch, whether to close."""

    at: int  # its token, counted from the branch's first
    end: int  # piece
    options: tuple[Action, ...]
    first_ids: tuple[int, ...]


class Brancher:
    """Follows what a line passed over. ``floor``: see ``candidate_floor``; ``longest``: pieces of a mention."""

    def __init__(self, tokens: PerTypeTokens, drafter: Drafter, floor: float, longest: int, lookahead: int) -> None:
        self._tokens, self._drafter = tokens, drafter
        self._floor, self._longest, self._lookahead = floor, longest, lookahead

    def beyond(self, line: DraftedLine, cache: Cache) -> Task[dict[Range, float]]:
        """The spans that a line did not take but gave at least the floor, with their log-probabilities."""
        floor = math.log(self._floor) - (math.log(line.begin.presence) if line.begin.forced else 0.0)
        found, branches = self._near(line, floor)
        ends = yield from side_by_side([self._closed(line, branch, floor, cache) for branch in branches])
        for branch, (end, logprob) in zip(branches, ends, strict=True):
            if logprob >= floor:
                found[branch.start, end] = max(found.get((branch.start, end), -math.inf), logprob)
        return found

    def _near(self, line: DraftedLine, floor: float) -> tuple[dict[Range, float], list[Branch]]:
        """What was passed over: mentions, with their log-probabilities, by a closing, and by an opening branches."""
        pieces = line.prefix.pieces
        tokens = [len(line.header)]  # before each step
        copied, after_open = 0, False
        for step in line.steps:
            ids = self._tokens.action(pieces, copied, step.action, after_open=after_open)
            tokens.append(tokens[-1] + len(ids))
            copied += step.action is Action.COPY
            after_open = step.action is Action.OPEN
        found: dict[Range, float] = {}
        branches: list[Branch] = []
        for index, state, action, logprob in passed_over(len(pieces), line.steps, floor):
            if action is Action.CLOSE:
                span = (state.open[-1], state.copied)
                found[span] = max(found.get(span, -math.inf), logprob)
            elif tokens[index] <= line.done:
                after_open = index > 0 and line.steps[index - 1].action is Action.OPEN
                before = len(line.prefix.ids) + tokens[index]
                branches.append(self._branch(pieces, state, logprob, before, after_open=after_open))
        return found, branches

    def _branch(self, pieces: Pieces, state: State, opened: float, before: int, *, after_open: bool) -> Branch:
        ids = list(self._tokens.action(pieces, state.copied, Action.OPEN, after_open=after_open))
        inner = State(len(pieces), state.copied, [*state.open, state.copied], True)
        closes = []
        follows_open = True
        while inner.copied < len(pieces) and inner.copied - state.copied < self._longest:
            ids += self._tokens.copy(pieces, inner.copied, after_open=follows_open)
            inner.apply(Action.COPY)
            follows_open = False
            options = inner.admissible()
            first = self._drafter.first_ids(pieces, inner.copied, options, after_open=False)
            closes.append(Close(len(ids) - 1, inner.copied, options, first))
        return Branch(state.copied, opened, before, ids, closes)

    def _closed(self, line: DraftedLine, branch: Branch, floor: float, cache: Cache) -> Task[tuple[int, float]]:
        """The likeliest closing of a branch: piece end and log-probability, opening and copying included.

        What no closing further on can be as likely as the best or the floor is not looked at.
        """
        best, path = (branch.start + 1, -math.inf), branch.opened
        room = branch.before + len(branch.ids)
        slot = cache.take(room)
        cache.copy(line.slot, slot, branch.before)
        done = 0
        closes = deque(branch.closes)
        while closes and path >= max(floor, best[1]):
            some = [closes.popleft()]
            while closes and closes[0].at < done + self._lookahead:
                some.append(closes.popleft())
            ids, past = branch.ids[done : some[-1].at + 1], branch.before + done
            asked = [(close.at - done, close.first_ids) for close in some]
            mask = causal(len(ids), past, self._drafter.device)
            (answer,) = yield [Part(ids, range(past, past + len(ids)), mask, slot, past, asked)]
            done += len(ids)
            for close, logprobs in zip(some, answer, strict=True):
                decided = dict(zip(close.options, logprobs, strict=True))
                best = max(best, (close.end, path + decided[Action.CLOSE]), key=lambda b: b[1])
                path += decided.get(Action.COPY, -math.inf)
        cache.give_back(slot, room)
        return best
