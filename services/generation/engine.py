"""The contract of engines: what tags segments. The same contract tests run on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from shared.messages import Segment, TaggedLine


class TagRequest(NamedTuple):
    """A segment and the types to look for in it, by key."""

    segment: Segment
    types: tuple[str, ...]


class Engine(Protocol):
    """Tags segments with a language model. Not thread-safe: one caller at a time."""

    def tag(self, requests: Sequence[TagRequest]) -> list[list[TaggedLine]]:
        """For each request one line a type, in the order of its types.

        The lines of a request do not depend on what else is in the call.
        """
        ...

    def tokens(self, request: TagRequest) -> int:
        """About how many tokens a request costs; batches are made by this."""
        ...
