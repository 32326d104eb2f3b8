"""Labelled exemplars, searched with FAISS: the contrastive selector decides by the nearest of them.

An exemplar is a span that is a correct mention of its type (accepted) or not (rejected), with its embedding from the
span encoder. A search is always within one type, so there is one FAISS index per type. On disk, a folder:

    <type>.faiss    the vectors, float32 of norm 1, compared by inner product
    <type>.jsonl    the exemplars, one per line, in the order of the vectors
    manifest.json   what the folder holds: :class:`Manifest`

A loaded index stays on disk, memory-mapped, and never changes its files: additions are kept in memory, removals are
only marked, and :meth:`ExemplarIndex.save` writes both into one folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Annotated, Literal

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ExemplarError

Kind = Literal["flat", "ivf", "hnsw"]
TypeKey = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$", description="Entity type key; it names files.")]
Floats = NDArray[np.float32]
Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]

MANIFEST = "manifest.json"
FLAT_BELOW = 4096  # an exact search of this many takes a fraction of a millisecond, and IVF needs more to train on
_BLOCK = 16384  # vectors per block: 16 MiB at 256 dimensions
_LINES_BLOCK = 2**24  # bytes of JSON lines scanned at once
_GPU_MOST = 2048  # results per query that FAISS supports on a GPU
_HEAD = '{"accepted":'  # every line starts with it
_REMEDY = "build it again with `biobracket index build`"


class _Frozen(BaseModel):
    # Error messages must not quote inputs: they may be clinical text.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Exemplar(_Frozen):
    """A labelled mention."""

    # Declared first, so that it comes first on a line and can be read without parsing the line.
    accepted: bool = Field(description="Whether it is a correct mention of the type.")
    id: str = Field(min_length=1, description="Unique in an index, and stable.")
    type: TypeKey
    text: str | None = Field(default=None, description="The mention; null if its source may not be shared.")
    source: str = Field(default="", description="Its origin: the name of a corpus, or `feedback`.")
    reviewer: str | None = Field(default=None, description="Who labelled it.")
    time: float | None = Field(default=None, description="When it was labelled, Unix seconds.")


class TypeCounts(_Frozen):
    """Number of exemplars of one type."""

    count: int = Field(ge=1, description="Number of exemplars.")
    accepted: int = Field(ge=0, description="How many of them are accepted.")


class File(_Frozen):
    """Size and checksum of a file."""

    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(description="Hex digest of its content.")


class Manifest(_Frozen):
    """What a folder of exemplars holds."""

    version: Literal[1] = 1
    kind: Kind = Field(description="Kind of the FAISS indexes: exact, inverted lists, or a graph.")
    dim: int = Field(ge=1, description="Dimensions of the vectors.")
    encoder: str = Field(pattern=r"^[0-9a-f]{16}$", description="Revision of the span encoder that made the vectors.")
    flat_below: int = Field(ge=0, description="Types with fewer exemplars are flat, whatever the kind.")
    types: dict[TypeKey, TypeCounts] = Field(default={}, description="By entity type key.")
    files: dict[str, File] = Field(default={}, description="Every other file, by name.")

    @property
    def digest(self) -> str:
        """Eight hex digits that change with the exemplars."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Neighbours:
    """The nearest exemplars of n vectors: arrays (n, k), nearest first, padded where there are fewer than k."""

    similarities: Floats  # cosines; -inf where padded
    accepted: Mask  # false where padded
    positions: Positions  # for `ExemplarIndex.exemplar`; -1 where padded


class ExemplarIndex:
    """The exemplars of one encoder.

    Thread-safe: changes are atomic for searches and exclude one another. Positions are specific to this object and
    stable: what a search found can still be read after it has been removed.
    """

    def __init__(self, manifest: Manifest, views: dict[str, _View]) -> None:
        """Use :meth:`load`."""
        self._manifest = manifest
        self._views = views  # never mutated, only replaced
        self._changing = threading.Lock()

    @staticmethod
    def build(
        folder: Path,
        batches: Iterable[tuple[Floats, Sequence[Exemplar]]],
        *,
        kind: Kind,
        encoder: str,
        dim: int,
        flat_below: int = FLAT_BELOW,
        progress: Callable[[int], None] | None = None,
    ) -> Manifest:
        """Writes an index; once complete, it replaces an older one in ``folder``, on Linux atomically.

        ``batches``: vectors (n, dim) of norm 1 and their exemplars, read one batch at a time. It needs memory for one
        batch and the FAISS index of one type, and temporarily disk space beside ``folder`` for two copies of the
        vectors. ``progress`` is called with the number of exemplars read. Raises ExemplarError if vectors or ids are
        invalid, or ``folder`` holds something other than an index.
        """
        folder = folder.resolve()
        if folder.exists() and any(folder.iterdir()):
            _read_manifest(folder, "name another folder, or delete this one")  # never replace anything else
        try:
            manifest = Manifest(kind=kind, dim=dim, encoder=encoder, flat_below=flat_below)
        except ValidationError as error:
            raise ExemplarError(f"{_first(error)}; see `Manifest` for the fields") from None
        beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        beside.mkdir(parents=True)
        try:
            types = _spool(beside, batches, dim, progress)
            for type_, counts in types.items():
                spooled = beside / f"{type_}.vectors"
                vectors = np.memmap(spooled, np.float32, "r", shape=(counts.count, dim))
                actual = "flat" if counts.count < flat_below else kind
                faiss.write_index(_indexed(vectors, actual), str(beside / f"{type_}.faiss"))
                spooled.unlink()
            files = {file.name: File(size=file.stat().st_size, sha256=_sha256(file)) for file in beside.iterdir()}
            manifest = manifest.model_copy(update={"types": types, "files": files})
            text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
            (beside / MANIFEST).write_text(text + "\n", encoding="utf-8")
            _rename(beside, folder)
            return manifest
        finally:
            shutil.rmtree(beside, ignore_errors=True)  # leftovers of a failure, or the older index

    @classmethod
    def load(
        cls, folder: Path, *, encoder: str | None, check: bool = False, nprobe: int | None = None
    ) -> ExemplarIndex:
        """Opens what :meth:`build` wrote.

        ``encoder``: the revision of the encoder whose vectors will be searched for; None to accept any. ``check``:
        verify checksums of all files, not only their sizes. ``nprobe``: how many lists of an IVF index to search, more
        being slower and closer to exact; None for a default by size. Raises ExemplarError if anything is missing,
        damaged or from another encoder.
        """
        manifest = _read_manifest(folder, _REMEDY)
        if encoder not in (None, manifest.encoder):
            raise ExemplarError(f"{folder}: encoder: made with {manifest.encoder}, not with {encoder}; {_REMEDY}")
        for name, file in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise ExemplarError(f"{path}: missing; {_REMEDY}")
            # Sizes always: FAISS may crash on a truncated file.
            if path.stat().st_size != file.size or (check and _sha256(path) != file.sha256):
                raise ExemplarError(f"{path}: not the file that {MANIFEST} describes; {_REMEDY}")
        bases = {type_: _Base.read(folder, type_, manifest, nprobe) for type_ in manifest.types}
        if _read_manifest(folder, _REMEDY) != manifest:
            raise ExemplarError(f"{folder}: replaced while it was read; load it again")
        return cls(manifest, {type_: _View.of(base) for type_, base in bases.items()})

    @property
    def manifest(self) -> Manifest:
        """The manifest of the files, without later changes."""
        return self._manifest

    def search(self, type_: str, vectors: Floats, k: int) -> Neighbours:
        """The k nearest exemplars of a type for (n, dim) vectors of norm 1; only padding for an unknown type."""
        vectors = _checked(vectors, self._manifest.dim, len(vectors))
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
        vectors = _checked(vectors, self._manifest.dim, len(exemplars))
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

    def _view(self, views: dict[str, _View], type_: str) -> _View:
        return views.get(type_) or _View.of(_Base.empty(self._manifest.dim))

    def _without(self, ids: set[str]) -> dict[str, _View]:
        return {type_: view.minus(ids) for type_, view in self._views.items()}


@dataclass(frozen=True)
class _Base:
    """One type on disk. Immutable."""

    index: faiss.Index
    gpu: faiss.Index | None
    lines: NDArray[np.uint8]  # the bytes of the file
    starts: Positions  # (size + 1,) offsets of the lines and of the end
    accepted: Mask  # (size,)

    @classmethod
    def empty(cls, dim: int) -> _Base:
        """For a type without files."""
        return cls(faiss.IndexFlatIP(dim), None, np.empty(0, np.uint8), np.zeros(1, np.int64), np.empty(0, np.bool_))

    @classmethod
    def read(cls, folder: Path, type_: str, manifest: Manifest, nprobe: int | None) -> _Base:
        try:
            # This flag maps all three kinds. IO_FLAG_MMAP maps only IVF, and starts threads at every search.
            index = faiss.read_index(str(folder / f"{type_}.faiss"), faiss.IO_FLAG_MMAP_IFC)
            lines = np.memmap(folder / f"{type_}.jsonl", np.uint8, "r")
            blocks = range(0, lines.size, _LINES_BLOCK)
            ends = [np.flatnonzero(lines[at : at + _LINES_BLOCK] == ord("\n")) + at for at in blocks]
            starts = np.concatenate([[-1], *ends]) + 1
            accepted = np.asarray(lines[starts[:-1] + len(_HEAD)] == ord("t"))
        except (OSError, RuntimeError, ValueError, IndexError):
            raise ExemplarError(f"{folder}: {type_}.faiss or {type_}.jsonl cannot be read; {_REMEDY}") from None
        has = manifest.types[type_]
        if (index.ntotal, index.d, accepted.size, accepted.sum()) != (has.count, manifest.dim, has.count, has.accepted):
            raise ExemplarError(f"{folder}: {type_}.faiss and {type_}.jsonl do not match {MANIFEST}; {_REMEDY}")
        if nprobe and isinstance(index, faiss.IndexIVF):
            index.nprobe = nprobe
        return cls(index, _on_gpu(index), lines, starts, accepted)

    @property
    def size(self) -> int:
        return self.accepted.size

    def exemplar(self, position: int) -> Exemplar:
        line = self.lines[self.starts[position] : self.starts[position + 1]].tobytes()
        try:
            return Exemplar.model_validate_json(line)
        except ValidationError as error:
            raise ExemplarError(f"line {position + 1} of a .jsonl file: {_first(error)}; {_REMEDY}") from None

    @cached_property
    def by_hash(self) -> tuple[Positions, Positions]:
        """Sorted hashes of the ids and their positions: 16 bytes per exemplar, a tenth of a dict."""
        hashes = np.fromiter((hash(self.exemplar(at).id) for at in range(self.size)), np.int64, self.size)
        order = np.argsort(hashes)
        return hashes[order], order

    def position(self, id_: str) -> int | None:
        hashes, order = self.by_hash
        first, end = (np.searchsorted(hashes, hash(id_), side) for side in ("left", "right"))
        return next((at for at in order[first:end].tolist() if self.exemplar(at).id == id_), None)

    def nearest(self, vectors: Floats, k: int, removed: Mask) -> tuple[Floats, Positions]:
        """At least the k (1..size) nearest not removed, as exactly as the kind allows; -inf for removed ones."""
        fetch = k
        while True:
            if self.gpu is not None and fetch <= _GPU_MOST:
                with _gpu_lock:
                    similarities, positions = self.gpu.search(vectors, fetch)
            else:
                similarities, positions = self.index.search(vectors, fetch)
            similarities[(positions < 0) | removed[positions]] = -np.inf
            enough = (np.isfinite(similarities).sum(axis=1) >= k) | (positions[:, -1] < 0)
            if fetch == self.size or enough.all():
                return similarities, positions
            fetch = min(2 * fetch, self.size)  # removed ones took up places


@dataclass(frozen=True)
class _View:
    """A snapshot of one type: its files and what was added, less what was removed. Immutable.

    Positions of added exemplars follow those in the files; none is reused.
    """

    base: _Base
    vectors: Floats  # (m, dim) of the added ones
    added: tuple[Exemplar, ...]  # (m,)
    accepted: Mask  # (size + m,)
    removed: Mask  # (size + m,)

    @classmethod
    def of(cls, base: _Base) -> _View:
        return cls(base, np.empty((0, base.index.d), np.float32), (), base.accepted, np.zeros(base.size, np.bool_))

    @cached_property
    def left(self) -> tuple[int, Positions, Floats]:
        """How many exemplars of the files are left; positions and vectors of the added ones that are."""
        rows = np.flatnonzero(~self.removed[self.base.size :])
        return int((~self.removed[: self.base.size]).sum()), rows + self.base.size, self.vectors[rows]

    def exemplar(self, position: int) -> Exemplar:
        size = self.base.size
        return self.base.exemplar(position) if position < size else self.added[position - size]

    def search(self, vectors: Floats, k: int) -> Neighbours:
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

    def plus(self, vectors: Floats, exemplars: Sequence[Exemplar]) -> _View:
        return replace(
            self,
            vectors=np.concatenate([self.vectors, vectors]),
            added=(*self.added, *exemplars),
            accepted=np.concatenate([self.accepted, [exemplar.accepted for exemplar in exemplars]]),
            removed=np.concatenate([self.removed, np.zeros(len(exemplars), np.bool_)]),
        )

    def minus(self, ids: set[str]) -> _View:
        removed = self.removed.copy()
        removed[[at for id_ in ids if (at := self.base.position(id_)) is not None]] = True
        removed[self.base.size :] |= np.array([exemplar.id in ids for exemplar in self.added], np.bool_)
        return replace(self, removed=removed)

    def batches(self) -> Iterator[tuple[Floats, list[Exemplar]]]:
        """All vectors and exemplars, a block at a time."""
        for start in range(0, self.base.size, _BLOCK):
            end = min(start + _BLOCK, self.base.size)
            live = np.flatnonzero(~self.removed[start:end])
            vectors = self.base.index.reconstruct_n(start, end - start)
            yield vectors[live], [self.exemplar(start + row) for row in live.tolist()]
        _, added, added_vectors = self.left
        yield added_vectors, [self.exemplar(at) for at in added.tolist()]


def _spool(
    folder: Path,
    batches: Iterable[tuple[Floats, Sequence[Exemplar]]],
    dim: int,
    progress: Callable[[int], None] | None,
) -> dict[str, TypeCounts]:
    """Writes each type to ``<type>.vectors``, raw float32, and ``<type>.jsonl``; returns the counts by type."""
    counts: dict[str, tuple[int, int]] = {}
    digests = bytearray()  # of the ids: 16 bytes each, where a set would need a hundred
    with ExitStack() as stack:
        files: dict[str, tuple[IO[bytes], IO[bytes]]] = {}
        for given, exemplars in batches:
            vectors = _checked(given, dim, len(exemplars))
            for type_ in dict.fromkeys(exemplar.type for exemplar in exemplars):
                if type_ not in files:
                    paths = (folder / f"{type_}.vectors", folder / f"{type_}.jsonl")
                    files[type_] = (stack.enter_context(paths[0].open("wb")), stack.enter_context(paths[1].open("wb")))
                rows = [row for row, exemplar in enumerate(exemplars) if exemplar.type == type_]
                files[type_][0].write(vectors[rows].tobytes())
                files[type_][1].writelines(exemplars[row].model_dump_json().encode() + b"\n" for row in rows)
                count, accepted = counts.get(type_, (0, 0))
                counts[type_] = (count + len(rows), accepted + sum(exemplars[row].accepted for row in rows))
            for exemplar in exemplars:
                digests += hashlib.blake2b(exemplar.id.encode(), digest_size=16).digest()
            if progress is not None:
                progress(len(digests) // 16)
    ids = np.frombuffer(digests, "S16")
    order = np.argsort(ids, kind="stable")
    again = order[1:][ids[order[1:]] == ids[order[:-1]]]
    if again.size:
        raise ExemplarError(
            f"id: exemplar {again.min()}, counted from 0, has the id of an earlier one; ids must be unique"
        )
    return {type_: TypeCounts(count=count, accepted=accepted) for type_, (count, accepted) in counts.items()}


def _indexed(vectors: Floats, kind: Kind) -> faiss.Index:
    """A FAISS index of (n, dim) vectors, which may be memory-mapped."""
    count, dim = vectors.shape
    index: faiss.Index
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        index.hnsw.efSearch = 64  # a few times the number of neighbours a decision uses
    elif kind == "ivf":
        lists = max(1, min(round(4 * count**0.5), count // 39))  # FAISS's advice: 4 sqrt(n), each trained on 39
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        sample = np.random.default_rng(0).choice(count, min(count, 64 * lists), replace=False)
        index.train(np.asarray(vectors[np.sort(sample)]))
        index.nprobe = min(lists, max(8, lists // 32))
    else:
        index = faiss.IndexFlatIP(dim)
    for start in range(0, count, _BLOCK):
        index.add(np.asarray(vectors[start : start + _BLOCK]))
    return index


def _checked(vectors: Floats, dim: int, count: int) -> Floats:
    """Vectors in the layout FAISS needs. Raises ExemplarError unless they are (count, dim), finite and of norm 1."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.shape != (count, dim):
        raise ExemplarError(f"vectors: shape {vectors.shape}; give ({count}, {dim}), one per exemplar")
    if not np.isfinite(vectors).all():
        raise ExemplarError("vectors: some are not finite; check the encoder's weights")
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(np.abs(norms - 1) > 1e-3)
    if wrong.size:
        raise ExemplarError(f"vectors: row {wrong[0]} has norm {norms[wrong[0]]:.4g}; divide each by its L2 norm")
    return vectors


def _read_manifest(folder: Path, remedy: str) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise ExemplarError(f"{folder}: no index: {MANIFEST} cannot be read ({error.strerror}); {remedy}") from None
    except ValidationError as error:
        raise ExemplarError(f"{folder / MANIFEST}: {_first(error)}; {remedy}") from None


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _rename(new: Path, folder: Path) -> None:
    """Renames ``new`` to ``folder``, and an existing ``folder`` to ``new``."""
    if not folder.exists():
        new.rename(folder)
        return
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE: a reader always finds one or the other
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None or renameat2(here, os.fsencode(new), here, os.fsencode(folder), exchange) != 0:
        old = new.with_name(f"{new.name}.old")  # not Linux, or a file system without support
        folder.rename(old)
        new.rename(folder)
        old.rename(new)


_gpu_lock = threading.Lock()  # FAISS's GPU indexes are not thread-safe


@lru_cache(maxsize=1)
def _gpu_resources() -> faiss.StandardGpuResources:
    return faiss.StandardGpuResources()  # one for all types: each takes over a gigabyte


def _on_gpu(index: faiss.Index) -> faiss.Index | None:
    """A copy on the first GPU; None if FAISS sees none or does not support the kind there (HNSW)."""
    if isinstance(index, faiss.IndexHNSW) or getattr(faiss, "get_num_gpus", int)() == 0:
        return None
    return faiss.index_cpu_to_gpu(_gpu_resources(), 0, index)
