"""The labelled exemplars that vote on candidates: those of an index, and those from feedback.

Both can change while a selector runs. An index whose folder is replaced is loaded in the background and takes over once
it is complete.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import ExemplarError
from shared.messages import Candidate
from shared.runtime.logs import get_logger
from shared.selection.exemplars.format import MANIFEST, Exemplar, Floats, Manifest, Mask
from shared.selection.exemplars.index import ExemplarIndex
from shared.selection.exemplars.snapshot import Neighbours
from shared.selection.feedback import Changes, Feedback
from shared.selection.span_encoder import Encoded

SOURCE = "feedback"
_ENCODE_BATCH = 256  # feedback items that are encoded in one call

Encode = Callable[[Sequence[Candidate]], Encoded]

logger = get_logger(__name__)


@dataclass(frozen=True)
class Nearest:
    """The nearest exemplars of n candidates of one type, each (n, k), nearest first; see :class:`Neighbours`."""

    neighbours: Neighbours
    from_feedback: Mask
    _indexes: tuple[ExemplarIndex, ExemplarIndex]
    _type: str

    def exemplar(self, row: int, column: int) -> Exemplar:
        """The exemplar at a position that is not padding."""
        index = self._indexes[int(self.from_feedback[row, column])]
        return index.exemplar(self._type, int(self.neighbours.positions[row, column]))


class ExemplarPool:
    """The exemplars of one encoder. Not thread-safe: one caller at a time."""

    def __init__(self, dim: int, encoder: str, folder: Path | None = None, cache: Path | None = None) -> None:
        """``encoder``: its revision; ``folder``: of an index, which need not exist yet; ``cache``: remembers digests.

        ExemplarError if there is an index that cannot be used.
        """
        self._encoder = encoder
        self._folder = folder
        self._cache = cache
        self._dim = dim
        self._stamp = self._on_disk()
        self._index = self._empty() if folder is None or self._stamp is None else self._load(folder)
        self._loading: threading.Thread | None = None
        self._loaded: ExemplarIndex | None = None
        self._feedback = self._empty()

    @property
    def index_digest(self) -> str:
        """Identifies the contents of the index; empty if there are none."""
        return self._index.manifest.digest if self._index.manifest.types else ""

    def search(self, type_: str, vectors: Floats, k: int) -> Nearest:
        """The k nearest exemplars of a type for each row of ``vectors``, from index and feedback together."""
        indexes = (self._index, self._feedback)
        found = [index.search(type_, vectors, k) for index in indexes]
        similarities = np.concatenate([each.similarities for each in found], axis=1)
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]

        def best(parts: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
            return np.take_along_axis(np.concatenate(parts, axis=1), order, axis=1)

        neighbours = Neighbours(
            np.take_along_axis(similarities, order, axis=1),
            best([each.accepted for each in found]).astype(bool),
            best([each.positions for each in found]).astype(np.int64),
        )
        from_feedback = best([np.full(each.accepted.shape, i) for i, each in enumerate(found)]).astype(bool)
        return Nearest(neighbours, from_feedback, indexes, type_)

    def update(self, changes: Changes, encode: Encode) -> None:
        """Turns changed feedback into exemplars, except that on types which the encoder does not know."""
        if changes.restarted:
            self._feedback = self._empty()
        self._feedback.remove((*changes.gone, *(item.id for item in changes.given)))
        for start in range(0, len(changes.given), _ENCODE_BATCH):
            batch = changes.given[start : start + _ENCODE_BATCH]
            encoded = encode([item.candidate() for item in batch])
            rows = np.flatnonzero(encoded.known).tolist()
            self._feedback.add(encoded.embeddings[rows], [_exemplar(batch[row]) for row in rows])

    def refresh(self) -> None:
        """Starts loading an index that was replaced, or switches to it once it is loaded."""
        if self._loading is not None:
            if self._loading.is_alive():
                return
            self._loading = None
            if self._loaded is not None:
                self._index, self._loaded = self._loaded, None
                logger.info("index_loaded", count=len(self._index))
        stamp = self._on_disk()
        if stamp != self._stamp:
            self._stamp = stamp
            # A million exemplars take seconds.
            self._loading = threading.Thread(target=self._reload, name="index", daemon=True)
            self._loading.start()

    def _reload(self) -> None:
        try:
            self._loaded = self._empty() if self._folder is None or self._stamp is None else self._load(self._folder)
        except ExemplarError as error:  # keep the old index
            logger.error("index_refused", error=error)

    def _empty(self) -> ExemplarIndex:
        return ExemplarIndex(Manifest(kind="flat", dim=self._dim, encoder=self._encoder, flat_below=0), {})

    def _load(self, folder: Path) -> ExemplarIndex:
        return ExemplarIndex.load(folder, encoder=self._encoder, cache=self._cache)

    def _on_disk(self) -> tuple[int, int, int] | None:
        """A stamp that changes when the index's folder is replaced; None without an index."""
        if self._folder is None:
            return None
        try:
            found = os.stat(self._folder / MANIFEST)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _exemplar(item: Feedback) -> Exemplar:
    return Exemplar(
        accepted=item.accepted,
        id=item.id,
        type=item.type,
        text=item.mention,
        source=SOURCE,
        reviewer=item.reviewer,
        time=item.time,
    )
