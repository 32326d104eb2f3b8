"""The contract of engines: what tags segments. The same contract tests run on each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future
from typing import NamedTuple

from shared.messages import Segment, TaggedLine


class TagRequest(NamedTuple):
    """A segment and the types to look for in it, by key."""

    segment: Segment
    types: tuple[str, ...]


class Engine(ABC):
    """Tags segments with a language model. For any number of threads."""

    @abstractmethod
    def submit(self, request: TagRequest) -> Future[list[TaggedLine]]:
        """In the end, one line a type, in the order of its types.

        The lines do not depend on what else is under way. A future that is cancelled before its turn costs nothing.
        """

    def tag(self, requests: Iterable[TagRequest]) -> list[list[TaggedLine]]:
        """The lines of each request, in order, when all are there."""
        return [future.result() for future in [self.submit(request) for request in requests]]
