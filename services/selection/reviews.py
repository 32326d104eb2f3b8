"""What reviewers said of mentions, and the mentions that it decides over.

Feedback is looked for before each batch, so that whoever had an answer to theirs finds it in force everywhere.
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
_AROUND = 5  # pieces on either side that a near copy is known by

logger = get_logger(__name__)

_Context = Counter[tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class _Opinion:
    accepted: bool
    time: float
    around: _Context


class Reviews:
    """The feedback in a store, as far as it is known here. One caller at a time."""

    def __init__(self, store: FeedbackStore, alike: float = 0.5) -> None:
        """``alike``: share of the pieces around a mention that must be those around a near copy of it."""
        self._store = store
        self._alike = alike
        self._opinions: dict[tuple[str, str], dict[str, _Opinion]] = {}  # by type and words, then by id
        self._words: dict[str, tuple[str, str]] = {}  # type and words by id
        self._retry_at = 0.0
        self.version = 0

    def refresh(self) -> Changes | None:
        """Takes what changed; none where nothing did, or nothing can be known of it."""
        if time.monotonic() < self._retry_at:
            return None
        try:
            if self._store.version() == self.version:
                return None
            changes = self._store.changes(self.version)
        except StoreError as error:
            # Decisions go on with what is known: a result is better than none, and it says what it was decided with.
            logger.warning("feedback_unavailable", error=error)
            self._retry_at = time.monotonic() + _RETRY_S
            return None
        if changes.restarted:
            self._opinions.clear()
            self._words.clear()
        for id_ in (*changes.gone, *(given.id for given in changes.given)):
            if (key := self._words.pop(id_, None)) is not None:
                del self._opinions[key][id_]
        for given in changes.given:
            self._take(given)
        self.version = changes.version
        return changes

    def _take(self, given: Feedback) -> None:
        candidate = given.candidate()
        key = given.type, _normal(given.mention)
        self._words[given.id] = key
        self._opinions.setdefault(key, {})[given.id] = _Opinion(given.accepted, given.time, _around(candidate))

    def ruling(self, candidate: Candidate) -> bool | None:
        """Whether a reviewer accepted or rejected a candidate, or a near copy of it; none where nobody said.

        A near copy has the same words, but for case, white space and digits, and mostly the same around it. Of several
        opinions that on the nearest counts, and of those as near the latest.
        """
        opinions = self._opinions.get((candidate.type, _normal(candidate.text)))
        if not opinions:
            return None
        around = _around(candidate)
        nearest = max(opinions.values(), key=lambda opinion: (_likeness(around, opinion.around), opinion.time))
        return nearest.accepted if _likeness(around, nearest.around) >= self._alike else None


def _around(candidate: Candidate) -> _Context:
    """The pieces next to a mention, each with the side that it is on."""
    pieces = split(candidate.segment.text)
    start, end = candidate.start - candidate.segment.start, candidate.end - candidate.segment.start
    before = [_normal(pieces.core(i)) for i in range(len(pieces)) if pieces.ends[i] <= start]
    behind = [_normal(pieces.core(i)) for i in range(len(pieces)) if pieces.cores[i] >= end]
    return Counter([*((False, word) for word in before[-_AROUND:]), *((True, word) for word in behind[:_AROUND])])


def _likeness(one: _Context, other: _Context) -> float:
    """The share of pieces that both have, from 0 to 1; 1 where neither has any."""
    most = max(one.total(), other.total())
    return (one & other).total() / most if most else 1.0


def _normal(text: str) -> str:
    """Words without what differs between copies: case, white space and the digits of numbers."""
    return re.sub(r"[0-9]+", "0", " ".join(text.casefold().split()))
