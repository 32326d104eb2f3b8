"""Builds an index of exemplars and puts it in the place of an older one."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import faiss
import numpy as np
from pydantic import ValidationError

from shared.errors import ExemplarError, first_problem
from shared.model.digests import sha256
from shared.selection.exemplars.format import (
    BLOCK,
    MANIFEST,
    Exemplar,
    File,
    Floats,
    Kind,
    Manifest,
    TypeCounts,
    checked,
    read_manifest,
)

FLAT_BELOW = 4096  # an exact search of this many takes a fraction of a millisecond, and IVF needs more to train on


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
    batch and the FAISS index of one type, and temporarily disk space next to ``folder`` for two copies of the
    vectors. ``progress`` is called with the number of exemplars read. Raises ExemplarError if vectors or ids are
    invalid, or ``folder`` holds something other than an index.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        read_manifest(folder, "name another folder, or delete this one")  # never replace anything else
    try:
        manifest = Manifest(kind=kind, dim=dim, encoder=encoder, flat_below=flat_below)
    except ValidationError as error:
        raise ExemplarError(f"{first_problem(error)}; see `Manifest` for the fields") from None
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
        files = {file.name: File(size=file.stat().st_size, sha256=sha256(file)) for file in beside.iterdir()}
        manifest = manifest.model_copy(update={"types": types, "files": files})
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
        (beside / MANIFEST).write_text(text + "\n", encoding="utf-8")
        _rename(beside, folder)
        return manifest
    finally:
        shutil.rmtree(beside, ignore_errors=True)  # leftovers of a failure, or the older index


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
            vectors = checked(given, dim, len(exemplars))
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
    for start in range(0, count, BLOCK):
        index.add(np.asarray(vectors[start : start + BLOCK]))
    return index


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
