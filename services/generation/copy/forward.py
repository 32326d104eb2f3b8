"""One forward pass for many segments, which computes only the logits that their decisions need."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from shared.model.attention import Block
from shared.model.body import Body
from shared.model.cache import Cache
from shared.model.masks import sliding

T = TypeVar("T")


class Part(NamedTuple):
    """The tokens of one segment in a pass.

    ``mask``, ``slot`` and ``past``: see :class:`shared.model.attention.Block`. ``asked``: decisions, each a token of
    the part, counted from its first, and the first tokens of the options behind it.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    mask: Tensor
    slot: int
    past: int
    asked: Sequence[tuple[int, tuple[int, ...]]]


Answer: TypeAlias = list[list[float]]
"""The log-probabilities of each decision's options."""

# Yields what it needs from the next pass, is sent the answers, and returns its result.
Task: TypeAlias = Generator[list[Part], list[Answer], T]


class Forward:
    """Runs passes of a model. Thread-safe: each thread passes its own cache."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._embedding = body.embedding
        self._softcap = getattr(body.config, "final_logit_softcapping", None)
        self._window = getattr(body.config, "sliding_window", None)
        self.device = self._embedding.device

    @property
    def lookahead(self) -> int:
        """Draft tokens worth checking in one pass: a CPU's cost is per token, a GPU's per pass."""
        return 6 if self.device.type == "cpu" else 256

    def cache(self) -> Cache:
        """An empty cache of keys and values."""
        return self._body.cache()

    def run(self, parts: Sequence[Part], cache: Cache) -> list[Answer]:
        """The answers to all parts."""
        ids: list[int] = []
        positions: list[int] = []
        blocks: list[Block] = []
        wanted: list[int] = []
        options: list[tuple[int, ...]] = []
        for part in parts:
            begin = len(ids)
            ids += part.ids
            positions += part.positions
            blocks.append(Block(begin, len(ids), part.mask, self._sliding(part), part.past, part.slot))
            wanted += [begin + token for token, _ in part.asked]
            options += [first for _, first in part.asked]
        hidden = self._body(ids, positions, blocks, wanted, cache)
        logprobs = iter(self._logprobs(hidden.float(), options))
        return [[next(logprobs) for _ in part.asked] for part in parts]

    def _sliding(self, part: Part) -> Tensor | None:
        """The mask of sliding-window layers; None if the window makes no difference."""
        if self._window is None or max(part.positions) < self._window:
            return None
        queries = torch.tensor(part.positions, device=self.device)
        # Tokens are in slots in the order of their positions, except those of branches, which come after them.
        past = torch.arange(part.past, device=self.device)
        return sliding(part.mask, queries, torch.cat((past, queries)), self._window)

    def _logprobs(self, hidden: Tensor, options: Sequence[tuple[int, ...]]) -> list[list[float]]:
        if not options:
            return []
        width = max(map(len, options))
        ids = torch.tensor([first + (first[0],) * (width - len(first)) for first in options], device=self.device)
        valid = torch.tensor([[i < len(first) for i in range(width)] for first in options], device=self.device)
        logits = torch.einsum("nh,nkh->nk", hidden, self._embedding[ids].float())
        if self._softcap:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        logprobs = torch.log_softmax(logits.masked_fill(~valid, float("-inf")), dim=-1).tolist()
        return [row[: len(first)] for row, first in zip(logprobs, options, strict=True)]


def side_by_side(tasks: Sequence[Task[T]]) -> Task[list[T]]:
    """Several tasks as one, whose passes have what all of them need."""
    found: dict[int, T] = {}
    asked: dict[int, list[Part]] = {}
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
