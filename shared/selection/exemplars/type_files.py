"""The exemplars of one type on disk, memory-mapped and searched with FAISS."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shared.errors import ExemplarError, first_problem
from shared.selection.exemplars.format import (
    MANIFEST,
    REMEDY,
    Exemplar,
    Floats,
    Manifest,
    Mask,
    Positions,
)

_LINES_BLOCK = 2**24  # bytes of JSON lines scanned at once
_GPU_MOST = 2048  # results per query that FAISS supports on a GPU
_HEAD = '{"accepted":'  # every line starts with it


@dataclass(frozen=True)
class TypeFiles:
    """One type on disk. Immutable."""

    index: faiss.Index
    gpu: faiss.Index | None
    lines: NDArray[np.uint8]  # the bytes of the file
    starts: Positions  # (size + 1,) offsets of the lines and of the end
    accepted: Mask  # (size,)

    @classmethod
    def empty(cls, dim: int) -> TypeFiles:
        """For a type without files."""
        return cls(faiss.IndexFlatIP(dim), None, np.empty(0, np.uint8), np.zeros(1, np.int64), np.empty(0, np.bool_))

    @classmethod
    def read(cls, folder: Path, type_: str, manifest: Manifest, nprobe: int | None) -> TypeFiles:
        """Maps the files of a type. Raises ExemplarError if they cannot be read or do not match the manifest."""
        try:
            # This flag maps all three kinds. IO_FLAG_MMAP maps only IVF, and starts threads at every search.
            index = faiss.read_index(str(folder / f"{type_}.faiss"), faiss.IO_FLAG_MMAP_IFC)
            lines = np.memmap(folder / f"{type_}.jsonl", np.uint8, "r")
            blocks = range(0, lines.size, _LINES_BLOCK)
            ends = [np.flatnonzero(lines[at : at + _LINES_BLOCK] == ord("\n")) + at for at in blocks]
            starts = np.concatenate([[-1], *ends]) + 1
            accepted = np.asarray(lines[starts[:-1] + len(_HEAD)] == ord("t"))
        except (OSError, RuntimeError, ValueError, IndexError):
            raise ExemplarError(f"{folder}: {type_}.faiss or {type_}.jsonl cannot be read; {REMEDY}") from None
        has = manifest.types[type_]
        if (index.ntotal, index.d, accepted.size, accepted.sum()) != (has.count, manifest.dim, has.count, has.accepted):
            raise ExemplarError(f"{folder}: {type_}.faiss and {type_}.jsonl do not match {MANIFEST}; {REMEDY}")
        if nprobe and isinstance(index, faiss.IndexIVF):
            index.nprobe = nprobe
        return cls(index, _on_gpu(index), lines, starts, accepted)

    @property
    def size(self) -> int:
        """Number of exemplars."""
        return self.accepted.size

    def exemplar(self, position: int) -> Exemplar:
        """The exemplar at a position. Raises ExemplarError if its line is damaged."""
        line = self.lines[self.starts[position] : self.starts[position + 1]].tobytes()
        try:
            return Exemplar.model_validate_json(line)
        except ValidationError as error:
            raise ExemplarError(f"line {position + 1} of a .jsonl file: {first_problem(error)}; {REMEDY}") from None

    @cached_property
    def by_hash(self) -> tuple[Positions, Positions]:
        """Sorted hashes of the ids and their positions: 16 bytes per exemplar, a tenth of a dict."""
        hashes = np.fromiter((hash(self.exemplar(at).id) for at in range(self.size)), np.int64, self.size)
        order = np.argsort(hashes)
        return hashes[order], order

    def position(self, id_: str) -> int | None:
        """The position of the exemplar with an id; None if there is none."""
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


_gpu_lock = threading.Lock()  # FAISS's GPU indexes are not thread-safe


@lru_cache(maxsize=1)
def _gpu_resources() -> faiss.StandardGpuResources:
    return faiss.StandardGpuResources()  # one for all types: each takes over a gigabyte


def _on_gpu(index: faiss.Index) -> faiss.Index | None:
    """A copy on the first GPU; None if FAISS sees none or does not support the kind there (HNSW)."""
    if isinstance(index, faiss.IndexHNSW) or getattr(faiss, "get_num_gpus", int)() == 0:
        return None
    return faiss.index_cpu_to_gpu(_gpu_resources(), 0, index)
