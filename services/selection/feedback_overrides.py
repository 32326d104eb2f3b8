"""Feedback that overrides the selector: a mention that a reviewer accepted or rejected, and its near copies.

The store is checked for new feedback before each batch, so that feedback applies in every replica as soon as its sender
has the confirmation.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.errors import StoreError
from shared.messages import Candidate
from shared.runtime.logs import get_logger
from shared.selection.feedback import Changes, Feedback
from shared.text.pieces import split

if TYPE_CHECKING:
    from shared.backends.feedback_store import FeedbackStore

_RETRY_S = 5.0  # after the store did not answer
_CONTEXT_PIECES = 5  # on either side of a mention

logger = get_logger(__name__)

_Context = Counter[tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class _Entry:
    accepted: bool
    time: float
    context: _Context


class FeedbackOverrides:
    """A local copy of the feedback in a store. Not thread-safe: one caller at a time."""

    def __init__(self, store: FeedbackStore, near_copy: float = 0.5) -> None:
        """``near_copy``: the fraction of context pieces that a near copy of a mention shares with it."""
        self._store = store
        self._near_copy = near_copy
        self._entries: dict[tuple[str, str], dict[str, _Entry]] = {}  # by type and words, then by id
        self._keys: dict[str, tuple[str, str]] = {}  # type and words by id
        self._retry_at = 0.0
        self.version = 0

    def refresh(self) -> Changes | None:
        """Takes over what changed in the store; None if nothing did, or the store does not answer."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            if self._store.version() == self.version:
                return None
            changes = self._store.changes(self.version)
        except StoreError as error:
            # Carry on with the copy: a result is better than none, and it says which feedback it was decided with.
            logger.warning("feedback_unavailable", error=error)
            self._retry_at = time.monotonic() + _RETRY_S
            return None
        if changes.restarted:
            self._entries.clear()
            self._keys.clear()
        for id_ in (*changes.gone, *(item.id for item in changes.given)):
            if (key := self._keys.pop(id_, None)) is not None:
                del self._entries[key][id_]
        for item in changes.given:
            self._add(item)
        self.version = changes.version
        return changes

    def _add(self, item: Feedback) -> None:
        key = item.type, _normalised(item.mention)
        self._keys[item.id] = key
        self._entries.setdefault(key, {})[item.id] = _Entry(item.accepted, item.time, _context(item.candidate()))

    def accepted(self, candidate: Candidate) -> bool | None:
        """Whether a reviewer accepted or rejected a candidate or a near copy of it; None without such feedback.

        A near copy has the same words, ignoring case, white space and digits, in a similar context. If several entries
        apply, the one with the most similar context counts, and among equals the latest.
        """
        entries = self._entries.get((candidate.type, _normalised(candidate.text)))
        if not entries:
            return None
        context = _context(candidate)
        nearest = max(entries.values(), key=lambda entry: (_similarity(context, entry.context), entry.time))
        return nearest.accepted if _similarity(context, nearest.context) >= self._near_copy else None


def _context(candidate: Candidate) -> _Context:
    """The pieces next to a mention, each with the side that it is on: false before, true after."""
    pieces = split(candidate.segment.text)
    start, end = candidate.start - candidate.segment.start, candidate.end - candidate.segment.start
    before = [_normalised(pieces.core(i)) for i in range(len(pieces)) if pieces.ends[i] <= start]
    after = [_normalised(pieces.core(i)) for i in range(len(pieces)) if pieces.cores[i] >= end]
    return Counter(
        [*((False, word) for word in before[-_CONTEXT_PIECES:]), *((True, word) for word in after[:_CONTEXT_PIECES])]
    )


def _similarity(one: _Context, other: _Context) -> float:
    """The fraction of pieces that both share, from 0 to 1; 1 if neither has any."""
    most = max(one.total(), other.total())
    return (one & other).total() / most if most else 1.0


def _normalised(text: str) -> str:
    """Words without what differs between copies: case, white space and the digits of numbers."""
    return re.sub(r"[0-9]+", "0", " ".join(text.casefold().split()))
