"""The exemplars of one type at a moment: its files and what was added, less what was removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import faiss
import numpy as np

from shared.selection.exemplars.format import BLOCK, Exemplar, Floats, Mask, Positions
from shared.selection.exemplars.type_files import TypeFiles


@dataclass(frozen=True)
class Neighbours:
    """The nearest exemplars of n vectors: arrays (n, k), nearest first, padded where there are fewer than k."""

    similarities: Floats  # cosines; -inf where padded
    accepted: Mask  # false where padded
    positions: Positions  # for `ExemplarIndex.exemplar`; -1 where padded


@dataclass(frozen=True)
class TypeSnapshot:
    """A snapshot of one type: its files and what was added, less what was removed. Immutable.

    Positions of added exemplars follow those in the files; none is reused.
    """

    base: TypeFiles
    vectors: Floats  # (m, dim) of the added ones
    added: tuple[Exemplar, ...]  # (m,)
    accepted: Mask  # (size + m,)
    removed: Mask  # (size + m,)

    @classmethod
    def of(cls, base: TypeFiles) -> TypeSnapshot:
        """The files alone."""
        return cls(base, np.empty((0, base.index.d), np.float32), (), base.accepted, np.zeros(base.size, np.bool_))

    @cached_property
    def left(self) -> tuple[int, Positions, Floats]:
        """How many exemplars of the files are left; positions and vectors of the added ones that are."""
        rows = np.flatnonzero(~self.removed[self.base.size :])
        return int((~self.removed[: self.base.size]).sum()), rows + self.base.size, self.vectors[rows]

    def exemplar(self, position: int) -> Exemplar:
        """The exemplar at a position, removed or not."""
        size = self.base.size
        return self.base.exemplar(position) if position < size else self.added[position - size]

    def search(self, vectors: Floats, k: int) -> Neighbours:
        """The k nearest exemplars for (n, dim) vectors of norm 1."""
        base_count, added, added_vectors = self.left
        found = [(np.full((len(vectors), k), -np.inf, np.float32), np.full((len(vectors), k), -1))]
        if base_count:
            found.append(self.base.nearest(vectors, min(k, base_count), self.removed[: self.base.size]))
        if added.size:
            similarities, rows = faiss.knn(
                vectors, added_vectors, min(k, added.size), metric=faiss.METRIC_INNER_PRODUCT
            )
            found.append((similarities, added[rows]))
        similarities, positions = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        best = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        similarities, positions = (np.take_along_axis(each, best, axis=1) for each in (similarities, positions))
        real = np.isfinite(similarities)
        accepted = np.zeros_like(real)
        accepted[real] = self.accepted[positions[real]]
        return Neighbours(similarities, accepted, np.where(real, positions, -1))

    def plus(self, vectors: Floats, exemplars: Sequence[Exemplar]) -> TypeSnapshot:
        """With exemplars added."""
        return replace(
            self,
            vectors=np.concatenate([self.vectors, vectors]),
            added=(*self.added, *exemplars),
            accepted=np.concatenate([self.accepted, [exemplar.accepted for exemplar in exemplars]]),
            removed=np.concatenate([self.removed, np.zeros(len(exemplars), np.bool_)]),
        )

    def minus(self, ids: set[str]) -> TypeSnapshot:
        """Without the exemplars with these ids."""
        removed = self.removed.copy()
        removed[[at for id_ in ids if (at := self.base.position(id_)) is not None]] = True
        removed[self.base.size :] |= np.array([exemplar.id in ids for exemplar in self.added], np.bool_)
        return replace(self, removed=removed)

    def batches(self) -> Iterator[tuple[Floats, list[Exemplar]]]:
        """All vectors and exemplars, a block at a time."""
        for start in range(0, self.base.size, BLOCK):
            end = min(start + BLOCK, self.base.size)
            live = np.flatnonzero(~self.removed[start:end])
            vectors = self.base.index.reconstruct_n(start, end - start)
            yield vectors[live], [self.exemplar(start + row) for row in live.tolist()]
        _, added, added_vectors = self.left
        yield added_vectors, [self.exemplar(at) for at in added.tolist()]
