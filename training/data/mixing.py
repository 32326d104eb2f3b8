"""Mixes corpora into an endless stream of groups of items, each filling a batch; an item's length is in tokens."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from shared.settings import Settings
from training.config import ConfigError, RunConfig
from training.data.corpora import Example, corpus_folder, part, read

T = TypeVar("T", bound=Sized)

Items = Callable[[Sequence[Example]], list[T]]
"""Turns examples into items."""


def check(config: RunConfig, settings: Settings) -> None:
    """Checks corpora and labels before any worker starts. Raises CorpusError or ConfigError."""
    for name, corpus in config.corpora.items():
        for split in ("train", "dev"):
            read(corpus_folder(name, settings), split, corpus.types)


def load(
    config: RunConfig,
    settings: Settings,
    items: Items[T],
    vary: Callable[[T, random.Random], T] = lambda item, _: item,
    keep: Callable[[Example], bool] = lambda _: True,
) -> tuple[Mixer[T], dict[str, list[list[T]]], dict[str, Any]]:
    """The training stream, the groups of each dev split, and the manifest's entry on the data.

    ``keep``: which texts to train on, among those of the configured folds.
    """
    found: dict[str, list[T]] = {}
    dev: dict[str, list[list[T]]] = {}
    data: dict[str, Any] = {}
    for name, corpus in config.corpora.items():
        folder = corpus_folder(name, settings)
        with _uncollected():
            found[name] = items([e for e in kept(read(folder, "train", corpus.types), config) if keep(e)])
        dev[name] = dev_groups(name, read(folder, "dev", corpus.types), items, config)
        data[name] = {f"{split}_sha256": sha256(folder / f"{split}.jsonl") for split in ("train", "dev")}
        data[name] |= {"segments": len(found[name]), "tokens": sum(map(len, found[name]))}
    mix = shares(found, {name: corpus.share for name, corpus in config.corpora.items()}, config.temperature)
    for name, share in mix.items():
        data[name]["share"] = round(share, 4)
    return Mixer(found, mix, config.batch_tokens, config.seed, vary), dev, data


def kept(examples: list[Example], config: RunConfig) -> list[Example]:
    """The examples to train on: all, or those outside the configured fold."""
    return examples if config.fold is None else part(examples, config.folds, config.fold, inside=False)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Suspends garbage collection, which would scan millions of long-lived objects again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def dev_groups(name: str, examples: Sequence[Example], items: Items[T], config: RunConfig) -> list[list[T]]:
    """Up to ``dev_batches`` groups of a dev split; it tokenises no more than they need.

    The texts do not depend on the run's seed, so losses of runs can be compared.
    """
    shuffled = random.Random(0).sample(examples, len(examples))  # noqa: S311 - an order, not a secret
    found = (item for example in shuffled for item in items([example]))
    fitting = (item for item in found if len(item) <= config.batch_tokens)
    groups = list(islice(grouped(fitting, config.batch_tokens), config.dev_batches))
    if not groups:
        raise ConfigError(f"batch_tokens: no dev text of {name} fits a batch of {config.batch_tokens} tokens; raise it")
    return groups


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def shares(
    corpora: Mapping[str, Sequence[Sized]], given: Mapping[str, float | None], temperature: float
) -> dict[str, float]:
    """The share of each corpus; they sum to one.

    Corpora without a given share divide the remainder in proportion to ``tokens ** (1 / temperature)``
    (temperature sampling as in multilingual BERT). If all or none are given, they are relative to one another.
    """
    sizes = {n: sum(map(len, corpora[n])) ** (1 / temperature) for n in corpora if given.get(n) is None}
    fixed = {n: s for n in corpora if (s := given.get(n)) is not None}
    left = 1.0 - sum(fixed.values()) if fixed and sizes else 1.0
    found = fixed | {n: left * size / sum(sizes.values()) for n, size in sizes.items()}
    return {n: found[n] / sum(found.values()) for n in corpora}


def grouped(found: Iterable[T], size: int) -> Iterator[list[T]]:
    """Groups consecutive items so that each group fits a batch."""
    group: list[T] = []
    used = 0
    for item in found:
        if group and used + len(item) > size:
            yield group
            group, used = [], 0
        group.append(item)
        used += len(item)
    if group:
        yield group


class Mixer(Generic[T]):
    """An endless stream of item groups that fill batches, drawn from corpora by share of tokens.

    A corpus is reshuffled whenever it is used up. Items longer than a batch are left out and counted in ``skipped``.
    ``vary`` augments an item each time it is drawn. The order is a function of the seed.
    """

    def __init__(
        self,
        corpora: Mapping[str, Sequence[T]],
        shares: Mapping[str, float],
        size: int,
        seed: int,
        vary: Callable[[T, random.Random], T] = lambda item, _: item,
    ) -> None:
        self._random = random.Random(seed)  # noqa: S311 - an order, not a secret
        self._size = size
        self._vary = vary
        self._corpora = {name: [i for i in found if len(i) <= size] for name, found in corpora.items()}
        if empty := sorted(name for name, found in self._corpora.items() if not found):
            raise ConfigError(f"batch_tokens: no text of {', '.join(empty)} fits a batch of {size} tokens; raise it")
        self.skipped = sum(len(i) > size for found in corpora.values() for i in found)
        self._shares = shares
        self._orders = {name: self._order(found) for name, found in self._corpora.items()}
        self.seen: dict[str, int] = dict.fromkeys(corpora, 0)

    def _order(self, found: list[T]) -> Iterator[T]:
        while True:
            shuffled = found.copy()
            self._random.shuffle(shuffled)
            for item in shuffled:
                yield self._vary(item, self._random)

    def __iter__(self) -> Iterator[list[T]]:
        return grouped(self.drawn(), self._size)

    def drawn(self) -> Iterator[T]:
        """The items, one at a time."""
        while True:
            # The corpus furthest behind its share comes next: shares hold at every moment, not only on average.
            name = min(self._shares, key=lambda n: self.seen[n] / self._shares[n])
            item = next(self._orders[name])
            self.seen[name] += len(item)
            yield item
