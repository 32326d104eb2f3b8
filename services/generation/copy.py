"""The ``copy`` engine: constrained copying, many tokens a pass (design section 4).

A line is drafted as the plain text. One forward pass over the next tokens of the draft tells, at every decision, what
the model would say there. The draft is corrected by all of these wishes at once and checked again, until nothing
changes. By induction over the line that fixed point is what decoding token by token, greedily and under the same
constraint, gives: every decision was taken by the model with exactly the line before it in view. (Jacobi decoding,
Santilli et al. 2023, arXiv 2305.10427, with the source text as the draft.) What stands before the first correction is
settled: its keys and values are kept, and later passes start there. A line's lie in one row of slots of the cache, a
copy of the prefix's first, so that attention sees them in one piece.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor

from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from services.generation.lines import Range, Start, Step, alternatives, begun, passed_over, tagged_line
from shared import entity_types
from shared.adapters import adapter_folder, generator_revision, load_body
from shared.base_model import load_tokenizer
from shared.copying import Action, CopyTokens, State
from shared.messages import Alternative, Segment, TaggedLine
from shared.packing import Block, Body, Cache, sliding
from shared.pieces import Pieces, split
from shared.settings import Settings

_LEAST = 512  # tokens, at least, for which a core is given a batch of its own
_MARGIN = 16  # slots of a line for brackets; one that needs more moves


@dataclass(slots=True)
class _Prefix:
    """A segment's shared beginning: its pieces and tokens."""

    segment: Segment
    pieces: Pieces
    ids: list[int]


@dataclass(slots=True)
class _Line:
    """A line under way. ``settled`` actions will not change; ``draft`` is what is guessed to follow.

    ``done`` counts the line's tokens (header included) whose keys and values are in the cache, behind the prefix's, in
    its ``room`` slots from ``slot`` on.
    """

    prefix: _Prefix
    type: str
    header: tuple[int, ...]
    begin: Start
    settled: list[Step]
    draft: list[Action]
    done: int = 0
    slot: int = 0
    room: int = 0
    # Filled for the pass under way:
    ids: list[int] = field(default_factory=list)
    pending: list[_Pending] = field(default_factory=list)


@dataclass(slots=True)
class _Pending:
    """A drafted action in the pass under way: its decision, at which token of the line, and that token's id count."""

    action: Action
    before: int  # index in the line of the token before it; the action's own tokens follow
    options: tuple[Action, ...] = ()
    first_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class _Branch:
    """A mention opened where the greedy line did not, to see where it would close."""

    line: _Line
    start: int  # piece that it begins at
    opened: float  # log-probability of opening it
    before: int  # tokens of the line before the bracket
    ids: list[int]
    closes: list[tuple[int, int, tuple[Action, ...], tuple[int, ...]]]  # token index, piece end, options, first ids


class CopyEngine:
    """See the module. ``body`` is the model, ``tokens`` its CopyTokens."""

    def __init__(self, body: Body, tokens: CopyTokens, config: GenerationConfig) -> None:
        self._body = body
        self._embedding = body.embedding
        self._softcap = getattr(body.config, "final_logit_softcapping", None)
        self._window = getattr(body.config, "sliding_window", None)
        self._tokens = tokens
        self._config = config
        self._device = self._embedding.device
        on_cpu = self._device.type == "cpu"
        self._lookahead = config.lookahead or (6 if on_cpu else 256)
        # What is not a matrix product runs on one core only: groups side by side use all of them.
        self._threads = (config.threads or os.cpu_count() or 1) if on_cpu else 1
        self._side_by_side = ThreadPoolExecutor(self._threads, thread_name_prefix="copy")
        self._of_thread = threading.local()

    @classmethod
    def load(cls, settings: Settings, config: GenerationConfig) -> CopyEngine:
        """Base model and adapter of the settings; the adapter is merged into the weights and costs nothing to run."""
        tokens = CopyTokens(load_tokenizer(settings))
        alone = config.model_copy(update={"threads": 1})

        def example(body: Body) -> None:
            requests = [TagRequest(segment, (segment.document_id,)) for segment in entity_types.definitions()]
            cls(body, tokens, alone).tag(requests)

        folder, revision = adapter_folder(settings), generator_revision(settings)
        return cls(load_body(settings, folder, revision, config.dtype, example), tokens, config)

    def tokens(self, request: TagRequest) -> int:
        """Tokens of the first pass, and as many again for lines: half of the types present, two passes each."""
        prefix = len(self._tokens.prefix(split(request.segment.text)))
        return prefix + len(request.types) * (3 + prefix)

    def tag(self, requests: Sequence[TagRequest]) -> list[list[TaggedLine]]:
        """See :class:`services.generation.engine.Engine`."""
        costs = [self.tokens(request) for request in requests]
        at_once = max(1, min(self._threads, len(requests), sum(costs) // _LEAST))
        groups = _groups(requests, costs, at_once * -(-sum(costs) // (at_once * self._config.batch_tokens)))
        threads = self._threads // at_once

        def tag(group: Sequence[TagRequest]) -> list[list[TaggedLine]]:
            if self._device.type == "cpu":
                # Of this thread, and of those that begin later. Ray's OMP_NUM_THREADS says nothing of the cores.
                torch.set_num_threads(threads)
            with torch.inference_mode():
                return self._tag(group)

        return [lines for found in self._side_by_side.map(tag, groups) for lines in found]

    def _tag(self, requests: Sequence[TagRequest]) -> list[list[TaggedLine]]:
        self._cache().clear()
        prefixes = []
        for request in requests:
            pieces = split(request.segment.text)
            prefixes.append(_Prefix(request.segment, pieces, self._tokens.prefix(pieces)))
        lines = self._first_pass(requests, prefixes)
        undecided = [line for request_lines in lines for line in request_lines if line.draft]
        while undecided:
            self._check(undecided)
            undecided = [line for line in undecided if line.draft]
        beyond = self._beyond([line for request_lines in lines for line in request_lines])
        return [
            [
                tagged_line(
                    line.prefix.segment, line.type, line.prefix.pieces, line.begin, line.settled, beyond[id(line)]
                )
                for line in request_lines
            ]
            for request_lines in lines
        ]

    def _cache(self) -> Cache:
        """Of this thread, for the batch that it is at; its memory is used again for the next."""
        cache: Cache | None = getattr(self._of_thread, "cache", None)
        if cache is None:
            cache = self._of_thread.cache = self._body.cache()
        return cache

    # The first pass: prefixes, and whether each type is there at all.

    def _first_pass(self, requests: Sequence[TagRequest], prefixes: Sequence[_Prefix]) -> list[list[_Line]]:
        ids: list[int] = []
        positions: list[int] = []
        blocks: list[Block] = []
        at: list[int] = []
        first_ids: list[tuple[int, ...]] = []
        headers: list[list[tuple[int, ...]]] = []
        for request, prefix in zip(requests, prefixes, strict=True):
            start, length = len(ids), len(prefix.ids)
            names = [entity_types.get(key).name(prefix.segment.lang) for key in request.types]
            headers.append([self._tokens.header(name) for name in names])
            ids += prefix.ids
            positions += range(length)
            for header in headers[-1]:
                ids += header
                positions += range(length, length + len(header))
                at.append(len(ids) - 1)
                options = State(len(prefix.pieces)).admissible()
                first_ids.append(self._first_ids(prefix.pieces, 0, options, after_open=False))
            slot = self._cache().take(len(ids) - start)
            blocks.append(self._block(start, positions[start:], slot, 0, length, [len(h) for h in headers[-1]]))
        hidden = self._run(ids, positions, blocks)
        logprobs = iter(self._logprobs(hidden, at, first_ids))
        lines: list[list[_Line]] = []
        for request, prefix, block, request_headers in zip(requests, prefixes, blocks, headers, strict=True):
            begin = block.slot + len(prefix.ids)
            found = []
            for key, header in zip(request.types, request_headers, strict=True):
                options = State(len(prefix.pieces)).admissible()
                decided = dict(zip(options, next(logprobs), strict=True))
                line = self._line(prefix, key, header, decided)
                if line.settled[0].action is not Action.ABSENT:
                    line.done = len(header)
                    room = 2 * len(prefix.ids) + len(header) + _MARGIN
                    self._move(line, room, (block.slot, len(prefix.ids)), (begin, len(header)))
                begin += len(header)
                found.append(line)
            lines.append(found)
        return lines

    def _move(self, line: _Line, room: int, *parts: tuple[int, int]) -> None:
        """Give a line ``room`` slots, the first of them with what is in ``parts``: slots and how many."""
        cache = self._cache()
        line.slot, line.room = cache.take(room), room
        to = line.slot
        for source, slots in parts:
            cache.copy(source, to, slots)
            to += slots

    def _line(self, prefix: _Prefix, key: str, header: tuple[int, ...], decided: dict[Action, float]) -> _Line:
        """A line with its first action settled. An absent type that had a real chance is drafted all the same."""
        begin = begun(decided, self._config.candidate_floor)
        line = _Line(prefix, key, header, begin, [begin.first], [])
        if begin.first.action is not Action.ABSENT:
            line.draft = _completed(prefix.pieces, [begin.first.action], [])
        return line

    # Passes over drafts.

    def _check(self, lines: Sequence[_Line]) -> None:
        """One pass over all drafts; each is settled up to and including its first correction."""
        ids: list[int] = []
        positions: list[int] = []
        blocks: list[Block] = []
        at: list[int] = []
        first_ids: list[tuple[int, ...]] = []
        for line in lines:
            self._prepare(line)
            start = len(ids)
            ids += line.ids
            offset = len(line.prefix.ids) + line.done
            positions += range(offset, offset + len(line.ids))
            at += [start + p.before - line.done for p in line.pending if p.options]
            first_ids += [p.first_ids for p in line.pending if p.options]
            if line.ids:
                if offset + len(line.ids) > line.room:
                    self._move(line, 2 * line.room + len(line.ids), (line.slot, offset))
                blocks.append(self._block(start, positions[start:], line.slot, offset))
        logprobs = iter(self._logprobs(self._run(ids, positions, blocks), at, first_ids))
        for line in lines:
            decided = [dict(zip(p.options, next(logprobs), strict=True)) if p.options else None for p in line.pending]
            self._settle(line, decided)

    def _prepare(self, line: _Line) -> None:
        """Lay out the drafted tokens from the first one without keys and values, and the decisions among them."""
        state = State(len(line.prefix.pieces))
        after_open = False
        for step in line.settled:
            state.apply(step.action)
            after_open = step.action is Action.OPEN
        line.ids = []
        line.pending = []
        # The last settled action's tokens have no keys yet: they come first.
        last = line.settled[-1].action
        line.ids += self._action(line.prefix.pieces, line.settled, last)
        keep = len(line.ids)
        for action in line.draft:
            options = state.admissible()
            if len(line.ids) > self._lookahead and line.pending and line.pending[-1].options:
                break  # what stands behind a correction is checked again: the rest waits until this much is settled
            pending = _Pending(action, line.done + len(line.ids) - 1)
            if len(options) > 1:
                pending.options = options
                pending.first_ids = self._first_ids(line.prefix.pieces, state.copied, options, after_open=after_open)
                keep = len(line.ids)
            line.pending.append(pending)
            line.ids += self._tokens.action(line.prefix.pieces, state.copied, action, after_open=after_open)
            state.apply(action)
            after_open = action is Action.OPEN
        if not any(p.options for p in line.pending):
            keep = 0
        del line.ids[keep:]  # nothing depends on tokens after the last decision

    def _action(self, pieces: Pieces, settled: Sequence[Step], action: Action) -> tuple[int, ...]:
        """Tokens of the last settled action."""
        before = settled[:-1]
        copied = sum(step.action is Action.COPY for step in before)
        after_open = bool(before) and before[-1].action is Action.OPEN
        return self._tokens.action(pieces, copied, action, after_open=after_open)

    def _settle(self, line: _Line, decided: Sequence[dict[Action, float] | None]) -> None:
        wishes = [
            p.action if d is None else max(d, key=d.__getitem__) for p, d in zip(line.pending, decided, strict=True)
        ]
        for i, (pending, wish, logprobs) in enumerate(zip(line.pending, wishes, decided, strict=True)):
            line.settled.append(Step(wish, logprobs))
            if wish is not pending.action:
                line.done = max(line.done, pending.before + 1)  # what stands before the corrected action
                actions = [step.action for step in line.settled]
                rest = list(zip([p.action for p in line.pending], wishes, strict=True))[i:]
                guess = _corrected(rest) + line.draft[len(line.pending) :]
                line.draft = _completed(line.prefix.pieces, actions, guess)
                return
        line.done += len(line.ids)
        line.draft = line.draft[len(line.pending) :]

    # Candidates beyond greedy.

    def _beyond(self, lines: Sequence[_Line]) -> dict[int, tuple[Alternative, ...]]:
        """For each line, by identity, the spans that it did not take but gave at least ``candidate_floor``."""
        floor = math.log(self._config.candidate_floor)
        found: dict[int, dict[tuple[int, int], float]] = {id(line): {} for line in lines}
        branches: list[_Branch] = []
        for line in lines:
            if line.settled[0].action is Action.ABSENT:
                continue
            branches += self._near(line, floor, found[id(line)])
        for begin in range(0, len(branches), 256):
            for branch, end, logprob in self._close(branches[begin : begin + 256]):
                best = found[id(branch.line)]
                span = (branch.start, end)
                if logprob >= floor and logprob > best.get(span, -math.inf):
                    best[span] = logprob
        return {
            id(line): alternatives(line.prefix.pieces, line.begin, line.settled, found[id(line)], floor)
            for line in lines
        }

    def _near(self, line: _Line, floor: float, found: dict[Range, float]) -> list[_Branch]:
        """Closings that were passed over go straight into ``found``; openings passed over become branches."""
        pieces = line.prefix.pieces
        tokens = [len(line.header)]  # before each step
        copied, after_open = 0, False
        for step in line.settled:
            ids = self._tokens.action(pieces, copied, step.action, after_open=after_open)
            tokens.append(tokens[-1] + len(ids))
            copied += step.action is Action.COPY
            after_open = step.action is Action.OPEN
        branches: list[_Branch] = []
        for index, state, action, logprob in passed_over(len(pieces), line.settled, floor):
            if action is Action.CLOSE:
                span = (state.open[-1], state.copied)
                found[span] = max(found.get(span, -math.inf), logprob)
            elif tokens[index] <= line.done:
                after_open = index > 0 and line.settled[index - 1].action is Action.OPEN
                branches.append(self._branch(line, state, logprob, tokens[index], after_open=after_open))
        return branches

    def _branch(self, line: _Line, state: State, opened: float, before: int, *, after_open: bool) -> _Branch:
        pieces = line.prefix.pieces
        ids = list(self._tokens.action(pieces, state.copied, Action.OPEN, after_open=after_open))
        inner = State(len(pieces), state.copied, [*state.open, state.copied], True)
        closes = []
        follows_open = True
        while inner.copied < len(pieces) and inner.copied - state.copied < self._config.branch_pieces:
            ids += self._tokens.copy(pieces, inner.copied, after_open=follows_open)
            inner.apply(Action.COPY)
            follows_open = False
            options = inner.admissible()
            first = self._first_ids(pieces, inner.copied, options, after_open=False)
            closes.append((len(ids) - 1, inner.copied, options, first))
        return _Branch(line, state.copied, opened, before, ids, closes)

    def _close(self, branches: Sequence[_Branch]) -> Iterator[tuple[_Branch, int, float]]:
        """For each branch the likeliest closing: piece end and log-probability, opening and copying included."""
        cache = self._cache()
        ids: list[int] = []
        positions: list[int] = []
        blocks: list[Block] = []
        at: list[int] = []
        first_ids: list[tuple[int, ...]] = []
        for branch in branches:
            line, start = branch.line, len(ids)
            offset = len(line.prefix.ids) + branch.before
            ids += branch.ids
            positions += range(offset, offset + len(branch.ids))
            at += [start + token for token, _, _, _ in branch.closes]
            first_ids += [first for _, _, _, first in branch.closes]
            slot = cache.take(offset + len(branch.ids))
            cache.copy(line.slot, slot, offset)
            blocks.append(self._block(start, positions[start:], slot, offset))
        if not branches:
            return
        logprobs = iter(self._logprobs(self._run(ids, positions, blocks), at, first_ids))
        for branch in branches:
            path = branch.opened
            best = (branch.start + 1, -math.inf)
            for _, end, options, _ in branch.closes:
                decided = dict(zip(options, next(logprobs), strict=True))
                best = max(best, (end, path + decided[Action.CLOSE]), key=lambda b: b[1])
                path += decided.get(Action.COPY, -math.inf)
            yield branch, *best

    # The model.

    def _first_ids(
        self, pieces: Pieces, copied: int, options: Sequence[Action], *, after_open: bool
    ) -> tuple[int, ...]:
        return tuple(self._tokens.action(pieces, copied, option, after_open=after_open)[0] for option in options)

    def _block(
        self,
        start: int,
        positions: Sequence[int],
        slot: int,
        past: int,
        shared: int | None = None,
        lines: Sequence[int] = (),
    ) -> Block:
        """A block that sees ``past`` tokens from ``slot`` on. Its first ``shared`` are seen by all of its ``lines``."""
        n = len(positions)
        mask = torch.ones(n, past + n, dtype=torch.bool, device=self._device).tril(past)
        at = n if shared is None else shared
        for length in lines:
            mask[at + length :, past + at : past + at + length] = False
            at += length
        window = None
        if self._window is not None and max(positions) >= self._window:
            queries = torch.tensor(positions, device=self._device)
            keys = torch.cat((torch.arange(past, device=self._device), queries))
            window = sliding(mask, queries, keys, self._window)
        return Block(start, start + n, mask, window, past, slot)

    def _run(self, ids: list[int], positions: list[int], blocks: list[Block]) -> Tensor:
        if not ids:
            return self._embedding.new_empty(0, self._embedding.shape[1])
        return self._body(ids, positions, blocks, self._cache())

    def _logprobs(self, hidden: Tensor, at: list[int], first_ids: list[tuple[int, ...]]) -> list[list[float]]:
        """Log-probabilities of the admissible actions at each decision: only their logits are computed."""
        if not at:
            return []
        width = max(len(f) for f in first_ids)
        options = torch.tensor([f + (f[0],) * (width - len(f)) for f in first_ids], device=self._device)
        valid = torch.tensor([[i < len(f) for i in range(width)] for f in first_ids], device=self._device)
        picked = hidden[torch.tensor(at, device=self._device)].float()
        logits = torch.einsum("nh,nkh->nk", picked, self._embedding[options].float())
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        logprobs = torch.log_softmax(logits.masked_fill(~valid, float("-inf")), dim=-1).tolist()
        return [row[: len(f)] for row, f in zip(logprobs, first_ids, strict=True)]


def _groups(requests: Sequence[TagRequest], costs: Sequence[int], number: int) -> Iterator[list[TagRequest]]:
    """Requests in their order, in about so many groups that cost about as much as one another."""
    total, ends = sum(costs), accumulate(costs)
    places = [int((end - cost / 2) * number / total) for end, cost in zip(ends, costs, strict=True)]
    for _, group in groupby(zip(places, requests, strict=True), key=lambda placed: placed[0]):
        yield [request for _, request in group]


def _corrected(rest: Sequence[tuple[Action, Action]]) -> list[Action]:
    """What to draft after a correction, from (drafted, wished) pairs, the corrected one first.

    Only a guess: the next pass checks it. The corrected action itself is settled and not repeated here.
    """
    out: list[Action] = []
    for i, (drafted, wished) in enumerate(rest):
        if i > 0 and wished is not drafted and wished is not Action.COPY:
            out.append(wished)
        # A drafted bracket that the model would rather not have is dropped; a drafted piece is always copied, unless
        # it is the correction itself.
        if drafted is Action.COPY:
            if not (i == 0 and wished is Action.COPY):
                out.append(Action.COPY)
        elif i > 0 and wished is drafted:
            out.append(drafted)
        elif i > 0 and drafted is Action.OPEN and wished is Action.CLOSE:
            out.append(Action.OPEN)
    return out


def _completed(pieces: Pieces, settled: Sequence[Action], guess: Sequence[Action]) -> list[Action]:
    """A guess made into an admissible rest of the line.

    A guessed mention that nothing closes ends with the line: in the pass that follows the model says where it really
    ends.
    """
    state = State(len(pieces))
    for action in settled:
        state.apply(action)
    out: list[Action] = []

    def take(action: Action) -> None:
        state.apply(action)
        out.append(action)

    for action in guess:
        options = state.admissible()
        if action in options:
            take(action)
    while state.copied < len(pieces):
        take(Action.COPY)
    while state.open:
        take(Action.CLOSE)
    return out
