"""The labelled exemplars that have a vote: those of an index, and what reviewers said.

Both can change while a selector runs. A folder that is replaced is read anew in the background, and taken when it is
whole.
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
from shared.selection.exemplars import MANIFEST, Exemplar, ExemplarIndex, Floats, Manifest, Mask, Neighbours
from shared.selection.feedback import Changes, Feedback
from shared.selection.span_encoder import Encoded

SOURCE = "feedback"
_AT_ONCE = 256  # opinions that are encoded in one call

Encode = Callable[[Sequence[Candidate]], Encoded]

logger = get_logger(__name__)


@dataclass(frozen=True)
class Found:
    """The nearest exemplars of n candidates of one type, each (n, k), nearest first; see :class:`Neighbours`."""

    near: Neighbours
    taught: Mask  # whether it is from feedback
    _indexes: tuple[ExemplarIndex, ExemplarIndex]
    _type: str

    def exemplar(self, row: int, column: int) -> Exemplar:
        """The exemplar at a place that is not padding."""
        index = self._indexes[int(self.taught[row, column])]
        return index.exemplar(self._type, int(self.near.positions[row, column]))


class Knowledge:
    """The exemplars of one encoder. One caller at a time."""

    def __init__(self, dim: int, encoder: str, folder: Path | None = None) -> None:
        """``encoder``: its revision; ``folder``: of an index, which need not be there yet.

        ExemplarError where there is an index that cannot be used.
        """
        self._encoder = encoder
        self._folder = folder
        self._dim = dim
        self._stamp = self._on_disk()
        self._index = self._empty() if folder is None or self._stamp is None else self._load(folder)
        self._loading: threading.Thread | None = None
        self._loaded: ExemplarIndex | None = None
        self._taught = self._empty()

    @property
    def state(self) -> str:
        """Names the exemplars of the index; empty where there are none."""
        return self._index.manifest.digest if self._index.manifest.types else ""

    def search(self, type_: str, vectors: Floats, k: int) -> Found:
        """The k nearest exemplars of a type, those of reviewers among them."""
        indexes = (self._index, self._taught)
        both = [index.search(type_, vectors, k) for index in indexes]
        similarities = np.concatenate([of.similarities for of in both], axis=1)
        order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]

        def best(parts: Sequence[NDArray[np.generic]]) -> NDArray[np.generic]:
            return np.take_along_axis(np.concatenate(parts, axis=1), order, axis=1)

        near = Neighbours(
            np.take_along_axis(similarities, order, axis=1),
            best([of.accepted for of in both]).astype(bool),
            best([of.positions for of in both]).astype(np.int64),
        )
        taught = best([np.full(of.accepted.shape, own) for own, of in enumerate(both)]).astype(bool)
        return Found(near, taught, indexes, type_)

    def learn(self, changes: Changes, encode: Encode) -> None:
        """Makes exemplars of what reviewers said; of types that the encoder does not know none."""
        if changes.restarted:
            self._taught = self._empty()
        self._taught.remove((*changes.gone, *(given.id for given in changes.given)))
        for start in range(0, len(changes.given), _AT_ONCE):
            given = changes.given[start : start + _AT_ONCE]
            encoded = encode([opinion.candidate() for opinion in given])
            rows = np.flatnonzero(encoded.known).tolist()
            self._taught.add(encoded.embeddings[rows], [_exemplar(given[row]) for row in rows])

    def refresh(self) -> None:
        """Takes an index that was replaced, once it is read; until then the old one stays in force."""
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
        except ExemplarError as error:  # the old index stays
            logger.error("index_refused", error=error)

    def _empty(self) -> ExemplarIndex:
        return ExemplarIndex(Manifest(kind="flat", dim=self._dim, encoder=self._encoder, flat_below=0), {})

    def _load(self, folder: Path) -> ExemplarIndex:
        return ExemplarIndex.load(folder, encoder=self._encoder)

    def _on_disk(self) -> tuple[int, int, int] | None:
        """Changes when the index's folder is replaced; none where there is none."""
        if self._folder is None:
            return None
        try:
            found = os.stat(self._folder / MANIFEST)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _exemplar(opinion: Feedback) -> Exemplar:
    return Exemplar(
        accepted=opinion.accepted,
        id=opinion.id,
        type=opinion.type,
        text=opinion.mention,
        source=SOURCE,
        reviewer=opinion.reviewer,
        time=opinion.time,
    )
