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
    """Tags segments with a language model. Thread-safe."""

    @abstractmethod
    def submit(self, request: TagRequest) -> Future[TaggedLine]:
        """A future of the segment's line, which does not depend on what else is running.

        A future that is cancelled before its turn costs nothing.
        """

    def tag(self, requests: Iterable[TagRequest]) -> list[TaggedLine]:
        """The lines of the requests, in order, once all are done."""
        return [future.result() for future in [self.submit(request) for request in requests]]
