"""Dead letters: what is there, and what becomes of it.

Kafka does not delete single records. That a letter was replayed or dropped is a record of the dead-letters topic
itself, with the headers ``biobracket.resolves`` (`<partition>-<offset>`) and ``biobracket.resolution``. It lasts as
long as the letter, and any reader of the topic can see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from shared.backends.records import Record, origin, replay_headers
from shared.backends.streams.scan import Scan
from shared.backends.streams.sink import Sink
from shared.messages import SourcePosition
from shared.settings import Settings

Resolution = Literal["replayed", "dropped"]

_RESOLVES = "biobracket.resolves"
_RESOLUTION = "biobracket.resolution"
_PLACE = re.compile(r"\d{1,9}-\d{1,19}")
_UNACKNOWLEDGED = 100


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. ``at_ms``: milliseconds since 1970, when it was written; ``resolution``: none while it is open."""

    record: Record
    reason: str
    field: str | None
    origin: SourcePosition
    at_ms: int
    resolution: str | None

    @property
    def place(self) -> str:
        """Names the letter: `<partition>-<offset>` in the dead-letters topic."""
        return f"{self.record.partition}-{self.record.offset}"

    @property
    def replayable(self) -> bool:
        """Whether it holds the record as it came: not one too large to keep, nor a batch that cannot be read."""
        return self.reason not in ("empty", "unreadable") and bool(self.record.value)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant. Empty fields exclude nothing; times are milliseconds since 1970."""

    places: Collection[str] = ()
    reasons: Collection[str] = ()
    since_ms: int = 0
    until_ms: int | None = None
    resolved: bool = False  # also those that were replayed or dropped

    def __post_init__(self) -> None:
        for place in self.places:
            if not _PLACE.fullmatch(place):
                raise ValueError(
                    f"letter: {place!r} is not <partition>-<offset>, as `biobracket dead-letters list` has it"
                )

    def takes(self, letter: Letter) -> bool:
        """Whether the letter is meant."""
        return (
            (not self.places or letter.place in self.places)
            and (not self.reasons or letter.reason in self.reasons)
            and letter.at_ms >= self.since_ms
            and (self.until_ms is None or letter.at_ms < self.until_ms)
            and (self.resolved or letter.resolution is None)
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """``resolved``: letters replayed or dropped; ``kept``: those that cannot be replayed."""

    resolved: int = 0
    kept: int = 0


class DeadLetters:
    """The dead letters of a deployment. Errors: StreamError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def letters(self, wanted: Filter) -> Iterator[Letter]:
        """The letters in the order of their topic's partitions; reads all of the topic."""
        with closing(Scan(self._settings, self._settings.topic_dead_letters)) as scan:
            resolutions: dict[str, str] = {}
            for records in scan.read():
                for record in records:
                    headers = dict(record.headers)
                    if _RESOLVES in headers:
                        resolutions[headers[_RESOLVES].decode()] = headers.get(_RESOLUTION, b"").decode()
            for records in scan.read():
                for record in records:
                    letter = _letter(record, resolutions)
                    if letter is not None and wanted.takes(letter):
                        yield letter

    def replay(self, wanted: Filter, progress: Callable[[], None] = lambda: None) -> Counts:
        """Sends the records to their topics again, each in its own place among the versions of its document.

        A crash in between can make a letter be replayed twice, which changes nothing.
        """
        return self._resolve(wanted, "replayed", progress)

    def drop(self, wanted: Filter, progress: Callable[[], None] = lambda: None) -> Counts:
        """Marks letters as done with."""
        return self._resolve(wanted, "dropped", progress)

    def _resolve(self, wanted: Filter, resolution: Resolution, progress: Callable[[], None]) -> Counts:
        resolved = kept = 0
        with closing(Sink(self._settings)) as sink:
            waiting: list[tuple[str, Future[None] | None]] = []

            def settle() -> None:
                for place, sent in waiting:
                    if sent is not None:
                        sent.result()
                    headers = ((_RESOLVES, place.encode()), (_RESOLUTION, resolution.encode()))
                    sink.send(self._settings.topic_dead_letters, None, None, headers)
                waiting.clear()
                sink.flush()

            for letter in self.letters(wanted):
                progress()
                if resolution == "replayed" and not letter.replayable:
                    kept += 1
                    continue
                sent = None
                if resolution == "replayed":
                    headers = replay_headers(letter.record, letter.origin)
                    sent = sink.send(letter.origin.topic, letter.record.key, letter.record.value, headers)
                waiting.append((letter.place, sent))
                resolved += 1
                if len(waiting) >= _UNACKNOWLEDGED:
                    settle()
            settle()
        return Counts(resolved, kept)


def _letter(record: Record, resolutions: dict[str, str]) -> Letter | None:
    place = origin(record)
    headers = dict(record.headers)
    if place is None or _RESOLVES in headers:  # a resolution, or somebody else's record
        return None
    field = headers.get("biobracket.field")
    at = headers.get("biobracket.at-ms", b"")
    return Letter(
        record=record,
        reason=headers.get("biobracket.reason", b"").decode("utf-8", "replace"),
        field=None if field is None else field.decode("utf-8", "replace"),
        origin=place,
        at_ms=int(at) if at.isdigit() else record.timestamp_ms,
        resolution=resolutions.get(f"{record.partition}-{record.offset}"),
    )
