"""What every selector does: candidates of a document in, kept entities out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shared.messages import Candidate, Entity


class Selector(Protocol):
    """Decides which candidates are mentions."""

    def select(self, candidates: Sequence[Candidate]) -> tuple[Entity, ...]:
        """The kept ones among the candidates of one document, in text order.

        Offsets are the document's. No span of a type comes twice and no two of a type cross. ``parent_id`` is left
        open: it depends on the entities of all types. The answer does not depend on the order of the candidates.
        """
        ...
