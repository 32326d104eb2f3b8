"""Dead letters: what is there, and what becomes of it.

Kafka does not delete single records. That a letter was replayed or dropped is a record of the dead-letters topic
itself, with the headers ``biobracket.resolves`` (`<partition>-<offset>`) and ``biobracket.resolution``. It lasts as
long as the letter, and any reader of the topic can see it.
"""

from __future__ import annotations

import heapq
import pickle
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

from shared.backends.records import Record, origin, replay_headers
from shared.backends.streams.scan import Scan
from shared.backends.streams.sink import Sink
from shared.messages import SourcePosition
from shared.settings import Settings

Resolution = Literal["replayed", "dropped"]

_RESOLVES = "biobracket.resolves"
_RESOLUTION = "biobracket.resolution"
_PLACE = re.compile(r"\d{1,9}-\d{1,19}")
_MS = re.compile(rb"\d{1,14}")
_UNACKNOWLEDGED = 1000
# What is to be replayed is held in memory up to so many bytes, and beyond in a file without a name.
_MEMORY_BYTES = 64 * 2**20


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
        """Whether it holds the record as it came: not one too large to keep, nor a batch that cannot be read.

        A key alone is one that takes feedback back.
        """
        return self.reason not in ("empty", "unreadable") and bool(self.record.value or self.record.key)


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
class DeadLetterCounts:
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
                        resolutions[printable(headers[_RESOLVES])] = printable(headers.get(_RESOLUTION, b""))
            for records in scan.read():
                for record in records:
                    letter = _letter(record, resolutions)
                    if letter is not None and wanted.takes(letter):
                        yield letter

    def replay(self, wanted: Filter, progress: Callable[[], None] = lambda: None) -> DeadLetterCounts:
        """Sends the records to their topics again, each in its own place among the versions of its document.

        They go in the order of their original positions. A crash in between can make a letter be replayed twice, which
        changes nothing.
        """
        kept = 0
        places: list[_Place] = []
        with tempfile.SpooledTemporaryFile(_MEMORY_BYTES) as spool, closing(Sink(self._settings)) as sink:
            for letter in self.letters(wanted):
                progress()
                if not letter.replayable:
                    kept += 1
                    continue
                places.append(_Place(letter.origin, letter.place, spool.tell()))
                headers = replay_headers(letter.record, letter.origin)
                pickle.dump((letter.record.key, letter.record.value, headers), spool)
            waiting: list[tuple[str, Future[Any]]] = []
            for place in _in_order(places):
                spool.seek(place.at)
                key, value, headers = pickle.load(spool)  # noqa: S301 - this process wrote it
                waiting.append((place.letter, sink.send(place.origin.topic, key, value, headers)))
                if len(waiting) >= _UNACKNOWLEDGED:
                    self._settle(sink, waiting)
            self._settle(sink, waiting)
        return DeadLetterCounts(len(places), kept)

    def drop(self, wanted: Filter, progress: Callable[[], None] = lambda: None) -> DeadLetterCounts:
        """Marks letters as done with."""
        places = []
        for letter in self.letters(wanted):
            progress()
            places.append(letter.place)
        with closing(Sink(self._settings)) as sink:
            self._resolve(sink, places, "dropped")
        return DeadLetterCounts(len(places))

    def _settle(self, sink: Sink, waiting: list[tuple[str, Future[Any]]]) -> None:
        """Resolves those that the broker has; StreamError if there are others."""
        errors = [(place, sent.exception()) for place, sent in waiting]
        waiting.clear()
        self._resolve(sink, [place for place, error in errors if error is None], "replayed")
        for _, error in errors:
            if error is not None:
                raise error

    def _resolve(self, sink: Sink, places: Iterable[str], how: Resolution) -> None:
        topic = self._settings.topic_dead_letters
        headers = [((_RESOLVES, place.encode()), (_RESOLUTION, how.encode())) for place in places]
        for sent in [sink.send(topic, None, None, each) for each in headers]:
            sent.result()


@dataclass(frozen=True, slots=True)
class _Place:
    origin: SourcePosition
    letter: str
    at: int  # in the file of what is to be sent


def _in_order(places: Iterable[_Place]) -> Iterator[_Place]:
    """By offset within a partition, whatever the times say, and by time across partitions."""
    logs: dict[tuple[str, str, int], list[_Place]] = {}
    for place in places:
        logs.setdefault((place.origin.topic, place.origin.topic_id, place.origin.partition), []).append(place)
    for log in logs.values():
        log.sort(key=lambda place: place.origin.offset)
    return heapq.merge(*logs.values(), key=lambda place: place.origin.timestamp_ms)


def printable(value: bytes) -> str:
    """A header's text; headers can be of anybody: nothing in them controls a terminal, or ends a reading."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _letter(record: Record, resolutions: dict[str, str]) -> Letter | None:
    place = origin(record)
    headers = dict(record.headers)
    if place is None or _RESOLVES in headers:  # a resolution, or somebody else's record
        return None
    field = headers.get("biobracket.field")
    at = headers.get("biobracket.at-ms", b"")
    return Letter(
        record=record,
        reason=printable(headers.get("biobracket.reason", b"")),
        field=None if field is None else printable(field),
        origin=place,
        at_ms=int(at) if _MS.fullmatch(at) else record.timestamp_ms,
        resolution=resolutions.get(f"{record.partition}-{record.offset}"),
    )
