"""The index of exemplars as it is served: loaded, searched, changed and saved."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from shared.errors import ExemplarError
from shared.model.digests import sha256
from shared.selection.exemplars.building import build
from shared.selection.exemplars.format import (
    MANIFEST,
    REMEDY,
    Exemplar,
    Floats,
    Manifest,
    checked,
    read_manifest,
)
from shared.selection.exemplars.snapshot import Neighbours, TypeSnapshot
from shared.selection.exemplars.type_files import TypeFiles


class ExemplarIndex:
    """The exemplars of one encoder.

    Thread-safe: changes are atomic for searches and exclude one another. Positions are specific to this object and
    stable: what a search found can still be read after it has been removed.
    """

    def __init__(self, manifest: Manifest, views: dict[str, TypeSnapshot]) -> None:
        """Use :meth:`load`."""
        self._manifest = manifest
        self._views = views  # never mutated, only replaced
        self._changing = threading.Lock()

    build = staticmethod(build)

    @classmethod
    def load(
        cls, folder: Path, *, encoder: str | None, cache: Path | None = None, nprobe: int | None = None
    ) -> ExemplarIndex:
        """Opens what :meth:`build` wrote.

        ``encoder``: the revision of the encoder whose vectors will be searched for; None to accept any. ``cache``:
        the folder that remembers digests of large files (:func:`shared.model.digests.sha256`); None to hash all of
        them. ``nprobe``: how many lists of an IVF index to search, more being slower and closer to exact; None for a
        default by size. Raises ExemplarError if anything is missing, damaged or from another encoder.
        """
        manifest = read_manifest(folder, REMEDY)
        if encoder not in (None, manifest.encoder):
            raise ExemplarError(f"{folder}: encoder: made with {manifest.encoder}, not with {encoder}; {REMEDY}")
        for name, file in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise ExemplarError(f"{path}: missing; {REMEDY}")
            # Before FAISS reads it, which may crash on a damaged file.
            if path.stat().st_size != file.size or sha256(path, cache) != file.sha256:
                raise ExemplarError(f"{path}: not the file that {MANIFEST} describes; {REMEDY}")
        bases = {type_: TypeFiles.read(folder, type_, manifest, nprobe) for type_ in manifest.types}
        if read_manifest(folder, REMEDY) != manifest:
            raise ExemplarError(f"{folder}: replaced while it was read; load it again")
        return cls(manifest, {type_: TypeSnapshot.of(base) for type_, base in bases.items()})

    @property
    def manifest(self) -> Manifest:
        """The manifest of the files, without later changes."""
        return self._manifest

    def search(self, type_: str, vectors: Floats, k: int) -> Neighbours:
        """The k nearest exemplars of a type for (n, dim) vectors of norm 1; only padding for an unknown type."""
        vectors = checked(vectors, self._manifest.dim, len(vectors))
        return self._view(self._views, type_).search(vectors, k)

    def exemplar(self, type_: str, position: int) -> Exemplar:
        """The exemplar at a position from a search. Raises ExemplarError if there never was one."""
        view = self._view(self._views, type_)
        if not 0 <= position < view.removed.size:
            raise ExemplarError(f"{type_}: no exemplar at position {position}; use one that a search returned")
        return view.exemplar(position)

    def items(self) -> Iterator[Exemplar]:
        """All exemplars, type by type, as of the first iteration."""
        for view in self._views.values():
            yield from map(view.exemplar, np.flatnonzero(~view.removed).tolist())

    def batches(self) -> Iterator[tuple[Floats, list[Exemplar]]]:
        """All vectors with their exemplars, by type and block, as of the first iteration."""
        for view in self._views.values():
            yield from view.batches()

    def ids(self) -> Iterator[str]:
        """The id of each of :meth:`items`."""
        return (exemplar.id for exemplar in self.items())

    def __len__(self) -> int:
        return sum(accepted + rejected for accepted, rejected in self.counts().values())

    def counts(self) -> dict[str, tuple[int, int]]:
        """Number of accepted and rejected exemplars of each type that has any."""
        live = {type_: view.accepted[~view.removed] for type_, view in self._views.items()}
        return {
            type_: (int(accepted.sum()), int((~accepted).sum())) for type_, accepted in live.items() if accepted.size
        }

    def add(self, vectors: Floats, exemplars: Sequence[Exemplar]) -> None:
        """Adds exemplars with (n, dim) vectors of norm 1. Each replaces any exemplar with its id, of whatever type.

        The first change reads the ids of all exemplars, which takes seconds for a million.
        """
        vectors = checked(vectors, self._manifest.dim, len(exemplars))
        rows = {exemplar.id: row for row, exemplar in enumerate(exemplars)}  # the last one with an id wins
        with self._changing:
            views = self._without(set(rows))
            for type_ in {exemplars[row].type for row in rows.values()}:
                chosen = [row for row in rows.values() if exemplars[row].type == type_]
                views[type_] = self._view(views, type_).plus(vectors[chosen], [exemplars[row] for row in chosen])
            self._views = views

    def remove(self, ids: Iterable[str]) -> int:
        """Removes the exemplars with these ids; returns how many there were."""
        with self._changing:
            before = len(self)
            self._views = self._without(set(ids))
            return before - len(self)

    def save(self, folder: Path) -> Manifest:
        """Writes all exemplars as :meth:`build` does; ``folder`` may be the one this was loaded from.

        This object does not change. Changes made while saving are not written.
        """
        made = self._manifest
        return self.build(
            folder, self.batches(), kind=made.kind, encoder=made.encoder, dim=made.dim, flat_below=made.flat_below
        )

    def _view(self, views: dict[str, TypeSnapshot], type_: str) -> TypeSnapshot:
        return views.get(type_) or TypeSnapshot.of(TypeFiles.empty(self._manifest.dim))

    def _without(self, ids: set[str]) -> dict[str, TypeSnapshot]:
        return {type_: view.minus(ids) for type_, view in self._views.items()}
