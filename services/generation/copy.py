"""The ``copy`` engine: constrained copying, many tokens a pass (design section 4).

A line is drafted as the plain text. One forward pass over the next tokens of the draft tells, at every decision, what
the model would say there. The draft is corrected by all of these wishes at once and checked again, until nothing
changes. By induction over the line that fixed point is what decoding token by token, greedily and under the same
constraint, gives: every decision was taken by the model with exactly the line before it in view. (Jacobi decoding,
Santilli et al. 2023, arXiv 2305.10427, with the source text as the draft.) What stands before the first correction is
settled: its keys and values are kept, and later passes start there. A line's lie in one row of slots of the cache, a
copy of the prefix's first, so that attention sees them in one piece.

A pass takes what all segments under way ask for next, and new segments join where it has room (continuous batching, as
in Orca, Yu et al. 2022): passes stay large enough for the products to be fast, and no segment waits for the longest of
its batch.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from services.generation.config import GenerationConfig
from services.generation.engine import Engine, TagRequest
from services.generation.lines import Range, Start, Step, alternatives, begun, passed_over, tagged_line
from shared import entity_types
from shared.messages import Alternative, Segment, TaggedLine
from shared.model.attention import Block
from shared.model.base_model import load_tokenizer
from shared.model.body import Body
from shared.model.cache import Cache
from shared.model.folders import adapter_folder
from shared.model.loading import load_body
from shared.model.masks import block_mask, causal, sliding
from shared.model.revision import generator_revision
from shared.settings import Settings
from shared.text.grammar import Action, CopyTokens, State
from shared.text.pieces import Pieces, split

_MARGIN = 16  # slots of a line for brackets; one that needs more moves

T = TypeVar("T")


class _Part(NamedTuple):
    """Tokens of one segment or line for a pass.

    ``mask``, ``slot`` and ``past``: see :class:`shared.model.attention.Block`; ``at``: the token, counted from the
    part's first, before each decision, ``first_ids`` the first token of every action that is admissible there. What
    comes back is, for each decision, the log-probability of each of them.
    """

    ids: list[int]
    positions: list[int]
    mask: Tensor
    slot: int
    past: int
    at: list[int]
    first_ids: list[tuple[int, ...]]


Answer: TypeAlias = list[list[float]]
# Asks for parts, is sent their answers after the pass, and in the end returns what it found.
Task: TypeAlias = Generator[list[_Part], list[Answer], T]


@dataclass(slots=True)
class _Prefix:
    """A segment's shared beginning: its pieces and tokens."""

    segment: Segment
    pieces: Pieces
    ids: list[int]


@dataclass(slots=True)
class _Line:
    """A line under way. ``settled`` actions will not change; ``draft`` is what is guessed to follow.

    ``state`` is that behind the settled actions. ``done`` counts the line's tokens (header included) whose keys and
    values are in the cache, behind the prefix's, in its ``room`` slots from ``slot`` on.
    """

    prefix: _Prefix
    type: str
    header: tuple[int, ...]
    begin: Start
    state: State
    settled: list[Step] = field(default_factory=list)
    draft: list[Action] = field(default_factory=list)
    done: int = 0
    slot: int = 0
    room: int = 0
    # Filled for the pass under way:
    ids: list[int] = field(default_factory=list)
    pending: list[_Pending] = field(default_factory=list)

    @property
    def past(self) -> int:
        """Tokens in the cache, the prefix's too."""
        return len(self.prefix.ids) + self.done

    @property
    def after_open(self) -> bool:
        """Whether an opening bracket was settled last: it has taken the space of what follows."""
        return bool(self.settled) and self.settled[-1].action is Action.OPEN

    def settle(self, step: Step) -> None:
        """Take an action."""
        self.settled.append(step)
        self.state.apply(step.action)


@dataclass(slots=True)
class _Pending:
    """A drafted action in the pass under way: its decision, and at which token."""

    action: Action
    before: int  # index in the line of the token before it; the action's own tokens follow
    options: tuple[Action, ...] = ()
    first_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class _Branch:
    """A mention opened where the greedy line did not, to see where it would close."""

    start: int  # piece that it begins at
    opened: float  # log-probability of opening it
    before: int  # tokens before the bracket, the prefix's too
    ids: list[int]
    closes: list[_Close]


class _Close(NamedTuple):
    """A decision of a branch, whether to close."""

    at: int  # its token, counted from the branch's first
    end: int  # piece
    options: tuple[Action, ...]
    first_ids: tuple[int, ...]


class CopyEngine(Engine):
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
        self._pass_tokens = config.pass_tokens or (512 if on_cpu else 8192)
        # What is not a matrix product runs on one core only: workers side by side use all of them.
        self._threads = (config.threads or os.cpu_count() or 1) if on_cpu else 1
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="copy")
        self._of_thread = threading.local()
        self._waiting: deque[tuple[TagRequest, Future[list[TaggedLine]]]] = deque()
        self._lock = threading.Lock()
        self._workers = 0

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

    def submit(self, request: TagRequest) -> Future[list[TaggedLine]]:
        """See :class:`services.generation.engine.Engine`."""
        future: Future[list[TaggedLine]] = Future()
        with self._lock:
            self._waiting.append((request, future))
            if self._workers < self._threads:
                self._workers += 1
                self._executor.submit(self._work)
        return future

    # A worker: passes, for as long as there is something to do.

    @torch.inference_mode()
    def _work(self) -> None:
        cache: Cache | None = getattr(self._of_thread, "cache", None)
        if cache is None:  # its memory is used again and again: fresh memory is slow
            cache = self._of_thread.cache = self._body.cache()
        under_way: list[_UnderWay] = []
        while True:
            self._admit(under_way, cache)
            with self._lock:
                if not under_way and not self._waiting:
                    self._workers -= 1
                    return
                threads = self._threads // self._workers
            if self._device.type == "cpu" and torch.get_num_threads() != threads:
                torch.set_num_threads(threads)  # of this worker only
            try:
                answers = iter(self._pass([part for of in under_way for part in of.parts], cache))
                under_way = [of for of in under_way if of.take([next(answers) for _ in of.parts])]
            except Exception as error:  # whoever asked learns of it; what waits has its own chance
                for of in under_way:
                    of.fail(error)
                under_way = []
                cache.clear()

    def _admit(self, under_way: list[_UnderWay], cache: Cache) -> None:
        """Take up waiting segments, until the pass is full or the cache has what it may."""
        if not under_way:
            cache.clear()
        tokens = sum(of.tokens for of in under_way)
        while tokens < self._pass_tokens and cache.used < self._config.cache_tokens:
            with self._lock:
                if not self._waiting:
                    return
                request, future = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            one = _UnderWay(self._segment(request, cache), future)
            if one.begin():
                under_way.append(one)
                tokens += one.tokens

    def _segment(self, request: TagRequest, cache: Cache) -> Task[list[TaggedLine]]:
        """The first pass: the prefix, and whether each type is there at all; then the lines of those that are."""
        segment, pieces = request.segment, split(request.segment.text)
        prefix = _Prefix(segment, pieces, self._tokens.prefix(pieces))
        headers = [self._tokens.header(entity_types.get(key).name(segment.lang)) for key in request.types]
        ids, positions, at = list(prefix.ids), list(range(len(prefix.ids))), []
        for header in headers:
            ids += header
            positions += range(len(prefix.ids), len(prefix.ids) + len(header))
            at.append(len(ids) - 1)
        options = State(len(pieces)).admissible()
        first_ids = [self._first_ids(pieces, 0, options, after_open=False)] * len(headers)
        mask = block_mask(len(prefix.ids), [len(header) for header in headers], self._device)
        slot = cache.take(len(ids))
        (decisions,) = yield [_Part(ids, positions, mask, slot, 0, at, first_ids)]
        lines = []
        begin = slot + len(prefix.ids)
        for key, header, logprobs in zip(request.types, headers, decisions, strict=True):
            line = self._line(prefix, key, header, dict(zip(options, logprobs, strict=True)))
            if line.draft:
                line.room = 2 * len(prefix.ids) + len(header) + _MARGIN
                line.slot = cache.take(line.room)
                cache.copy(slot, line.slot, len(prefix.ids))
                cache.copy(begin, line.slot + len(prefix.ids), len(header))
            begin += len(header)
            lines.append(line)
        cache.give_back(slot, len(ids))
        return (yield from _side_by_side([self._decoded(line, cache) for line in lines]))

    def _line(self, prefix: _Prefix, key: str, header: tuple[int, ...], decided: dict[Action, float]) -> _Line:
        """A line with its first action settled. An absent type that had a real chance is drafted all the same."""
        begin = begun(decided, self._config.candidate_floor)
        line = _Line(prefix, key, header, begin, State(len(prefix.pieces)), done=len(header))
        line.settle(begin.first)
        if begin.first.action is not Action.ABSENT:
            line.draft = _completed(line.state, [])
        return line

    def _decoded(self, line: _Line, cache: Cache) -> Task[TaggedLine]:
        """The passes over a line's draft, each of which settles it up to and including its first correction."""
        others: tuple[Alternative, ...] = ()
        if line.draft:
            while line.draft:
                part = self._prepare(line, cache)
                decisions: Answer = []
                if part is not None:
                    (decisions,) = yield [part]
                self._settle(line, decisions)
            others = yield from self._beyond(line, cache)
            cache.give_back(line.slot, line.room)
        return tagged_line(line.prefix.segment, line.type, line.prefix.pieces, line.begin, line.settled, others)

    # Drafts.

    def _prepare(self, line: _Line, cache: Cache) -> _Part | None:
        """The drafted tokens from the first one without keys and values; none where there is nothing to decide."""
        pieces, state, after_open = line.prefix.pieces, _copied(line.state), line.after_open
        # The last settled action's tokens have no keys yet: they come first.
        line.ids = list(self._last(line))
        line.pending = []
        keep = 0
        for action in line.draft:
            options = state.admissible()
            if len(line.ids) > self._lookahead and line.pending and line.pending[-1].options:
                break  # what stands behind a correction is checked again: the rest waits until this much is settled
            pending = _Pending(action, line.done + len(line.ids) - 1)
            if len(options) > 1:
                pending.options = options
                pending.first_ids = self._first_ids(pieces, state.copied, options, after_open=after_open)
                keep = len(line.ids)
            line.pending.append(pending)
            line.ids += self._tokens.action(pieces, state.copied, action, after_open=after_open)
            state.apply(action)
            after_open = action is Action.OPEN
        del line.ids[keep:]  # nothing depends on tokens after the last decision
        if not line.ids:
            return None
        self._make_room(line, len(line.ids), cache)
        decisions = [pending for pending in line.pending if pending.options]
        return _Part(
            line.ids,
            list(range(line.past, line.past + len(line.ids))),
            causal(len(line.ids), line.past, self._device),
            line.slot,
            line.past,
            [pending.before - line.done for pending in decisions],
            [pending.first_ids for pending in decisions],
        )

    def _last(self, line: _Line) -> tuple[int, ...]:
        """Tokens of the last settled action."""
        last = line.settled[-1].action
        after_open = len(line.settled) > 1 and line.settled[-2].action is Action.OPEN
        copied = line.state.copied - (last is Action.COPY)
        return self._tokens.action(line.prefix.pieces, copied, last, after_open=after_open)

    def _make_room(self, line: _Line, tokens: int, cache: Cache) -> None:
        """See that so many fit behind those that the line has in the cache."""
        if line.past + tokens > line.room:
            slot, room = line.slot, line.room
            line.room = 2 * room + tokens
            line.slot = cache.take(line.room)
            cache.copy(slot, line.slot, line.past)
            cache.give_back(slot, room)

    def _settle(self, line: _Line, decisions: Answer) -> None:
        logprobs = iter(decisions)
        decided = [dict(zip(p.options, next(logprobs), strict=True)) if p.options else None for p in line.pending]
        wishes = [
            p.action if d is None else max(d, key=d.__getitem__) for p, d in zip(line.pending, decided, strict=True)
        ]
        for i, (pending, wish, found) in enumerate(zip(line.pending, wishes, decided, strict=True)):
            line.settle(Step(wish, found))
            if wish is not pending.action:
                line.done = max(line.done, pending.before + 1)  # what stands before the corrected action
                rest = list(zip([p.action for p in line.pending], wishes, strict=True))[i:]
                line.draft = _completed(line.state, _corrected(rest) + line.draft[len(line.pending) :])
                return
        line.done += len(line.ids)
        line.draft = line.draft[len(line.pending) :]

    # Candidates beyond greedy.

    def _beyond(self, line: _Line, cache: Cache) -> Task[tuple[Alternative, ...]]:
        """The spans that a line did not take but gave at least ``candidate_floor``."""
        least = math.log(self._config.candidate_floor)
        floor = least - (math.log(line.begin.presence) if line.begin.forced else 0.0)
        found, branches = self._near(line, floor)
        ends = yield from _side_by_side([self._closed(line, branch, floor, cache) for branch in branches])
        for branch, (end, logprob) in zip(branches, ends, strict=True):
            if logprob >= floor:
                found[branch.start, end] = max(found.get((branch.start, end), -math.inf), logprob)
        return alternatives(line.prefix.pieces, line.begin, line.settled, found, least)

    def _near(self, line: _Line, floor: float) -> tuple[dict[Range, float], list[_Branch]]:
        """What was passed over: mentions, with their log-probabilities, by a closing, and by an opening branches."""
        pieces = line.prefix.pieces
        tokens = [len(line.header)]  # before each step
        copied, after_open = 0, False
        for step in line.settled:
            ids = self._tokens.action(pieces, copied, step.action, after_open=after_open)
            tokens.append(tokens[-1] + len(ids))
            copied += step.action is Action.COPY
            after_open = step.action is Action.OPEN
        found: dict[Range, float] = {}
        branches: list[_Branch] = []
        for index, state, action, logprob in passed_over(len(pieces), line.settled, floor):
            if action is Action.CLOSE:
                span = (state.open[-1], state.copied)
                found[span] = max(found.get(span, -math.inf), logprob)
            elif tokens[index] <= line.done:
                after_open = index > 0 and line.settled[index - 1].action is Action.OPEN
                before = len(line.prefix.ids) + tokens[index]
                branches.append(self._branch(pieces, state, logprob, before, after_open=after_open))
        return found, branches

    def _branch(self, pieces: Pieces, state: State, opened: float, before: int, *, after_open: bool) -> _Branch:
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
            closes.append(_Close(len(ids) - 1, inner.copied, options, first))
        return _Branch(state.copied, opened, before, ids, closes)

    def _closed(self, line: _Line, branch: _Branch, floor: float, cache: Cache) -> Task[tuple[int, float]]:
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
            (decisions,) = yield [
                _Part(
                    ids,
                    list(range(past, past + len(ids))),
                    causal(len(ids), past, self._device),
                    slot,
                    past,
                    [close.at - done for close in some],
                    [close.first_ids for close in some],
                )
            ]
            done += len(ids)
            for close, logprobs in zip(some, decisions, strict=True):
                decided = dict(zip(close.options, logprobs, strict=True))
                best = max(best, (close.end, path + decided[Action.CLOSE]), key=lambda b: b[1])
                path += decided.get(Action.COPY, -math.inf)
        cache.give_back(slot, room)
        return best

    # The model.

    def _first_ids(
        self, pieces: Pieces, copied: int, options: Sequence[Action], *, after_open: bool
    ) -> tuple[int, ...]:
        return tuple(self._tokens.action(pieces, copied, option, after_open=after_open)[0] for option in options)

    def _pass(self, parts: Sequence[_Part], cache: Cache) -> list[Answer]:
        """Run all parts together."""
        ids: list[int] = []
        positions: list[int] = []
        blocks: list[Block] = []
        at: list[int] = []
        for part in parts:
            start = len(ids)
            ids += part.ids
            positions += part.positions
            at += [start + token for token in part.at]
            blocks.append(Block(start, len(ids), part.mask, self._window_of(part), part.past, part.slot))
        hidden = self._body(ids, positions, blocks, at, cache)
        logprobs = iter(self._logprobs(hidden, [first for part in parts for first in part.first_ids]))
        return [[next(logprobs) for _ in part.at] for part in parts]

    def _window_of(self, part: _Part) -> Tensor | None:
        if self._window is None or max(part.positions) < self._window:
            return None
        queries = torch.tensor(part.positions, device=self._device)
        keys = torch.cat((torch.arange(part.past, device=self._device), queries))
        return sliding(part.mask, queries, keys, self._window)

    def _logprobs(self, hidden: Tensor, first_ids: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Log-probabilities of the admissible actions at each decision: only their logits are computed."""
        width = max(len(f) for f in first_ids)
        options = torch.tensor([f + (f[0],) * (width - len(f)) for f in first_ids], device=self._device)
        valid = torch.tensor([[i < len(f) for i in range(width)] for f in first_ids], device=self._device)
        logits = torch.einsum("nh,nkh->nk", hidden.float(), self._embedding[options].float())
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        logprobs = torch.log_softmax(logits.masked_fill(~valid, float("-inf")), dim=-1).tolist()
        return [row[: len(f)] for row, f in zip(logprobs, first_ids, strict=True)]


class _UnderWay:
    """A segment between two passes: its task, what that asks for, and who waits for what it finds."""

    def __init__(self, task: Task[list[TaggedLine]], future: Future[list[TaggedLine]]) -> None:
        self._task = task
        self._future = future
        self.parts: list[_Part] = []

    @property
    def tokens(self) -> int:
        """Of the next pass."""
        return sum(len(part.ids) for part in self.parts)

    def begin(self) -> bool:
        """Ask for the first pass; false where there is none to wait for."""
        return self._on(None)

    def take(self, answers: list[Answer]) -> bool:
        """Go on with what the pass said; false where that was the last."""
        return self._on(answers)

    def _on(self, answers: list[Answer] | None) -> bool:
        try:
            self.parts = next(self._task) if answers is None else self._task.send(answers)
        except StopIteration as stop:
            self._future.set_result(stop.value)
            return False
        except Exception as error:  # of this segment alone
            self._future.set_exception(error)
            return False
        return True

    def fail(self, error: Exception) -> None:
        """Tell whoever waits, if nobody has."""
        self._task.close()
        if not self._future.done():
            self._future.set_exception(error)


def _side_by_side(tasks: Sequence[Task[T]]) -> Task[list[T]]:
    """Several as one: a pass has what all of them ask for."""
    found: dict[int, T] = {}
    asked: dict[int, list[_Part]] = {}
    for number, task in enumerate(tasks):
        try:
            asked[number] = next(task)
        except StopIteration as stop:
            found[number] = stop.value
    while asked:
        answers = iter((yield [part for parts in asked.values() for part in parts]))
        for number, parts in list(asked.items()):
            try:
                asked[number] = tasks[number].send([next(answers) for _ in parts])
            except StopIteration as stop:
                found[number] = stop.value
                del asked[number]
    return [found[number] for number in range(len(tasks))]


def _copied(state: State) -> State:
    return State(state.pieces, state.copied, list(state.open), state.started)


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


def _completed(state: State, guess: Sequence[Action]) -> list[Action]:
    """A guess made into an admissible rest of the line behind a state.

    A guessed mention that nothing closes ends with the line: in the pass that follows the model says where it really
    ends.
    """
    state = _copied(state)
    out: list[Action] = []

    def take(action: Action) -> None:
        state.apply(action)
        out.append(action)

    for action in guess:
        if action in state.admissible():
            take(action)
    while state.copied < state.pieces:
        take(Action.COPY)
    while state.open:
        take(Action.CLOSE)
    return out
