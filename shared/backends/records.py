"""Records of a stream, and the headers of dead letters and replays; needs no Kafka client."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import ValidationError

from shared.messages import Erasure, SourcePosition

Partition = tuple[str, int]
Headers = tuple[tuple[str, bytes], ...]
# Returns, if anything, the next offsets to read, to be committed once they are known.
Callback = Callable[[set[Partition]], Future[dict[Partition, int]] | None]

DeadLetterReason = Literal[
    # The value is not JSON, or not UTF-8.
    "not_json",
    # The value is empty or null.
    "empty",
    # A field is missing, of the wrong type or out of bounds; the header biobracket.field names it.
    "invalid",
    # An entity type that is not in the inventory.
    "unknown_type",
    # A text above ingest's size limit.
    "too_large",
    # Retries are exhausted.
    "exhausted",
    # A process died whenever it worked on the document, and on nothing else.
    "crashed",
    # A result broke the offset invariant: a bug.
    "refused",
    # The broker has it, but as a corrupt batch or in a codec that is not known; the value is the whole batch.
    "unreadable",
]
# Why a batch of records cannot be read: its checksum or structure is wrong, or nobody knows its codec.
Problem = Literal["corrupt", "codec"]
_HEADER = "biobracket."
_REPLAY = "replay-"
_ERASED = "erased-"
# The year 5138: a time above is in a smaller unit. Of this millennium, microseconds are.
_LATEST_MS = 10**14
_CODE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record as read; ``timestamp_ms`` is milliseconds since 1970, or 0 where its producer gave no time."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers = ()
    topic_id: str = ""  # hex UUID of the topic; empty where the broker does not tell
    problem: Problem | None = None  # with a problem, `value` holds the bytes of the batch
    span: int = 1  # how many offsets it takes: several for a batch that cannot be read


def milliseconds(timestamp: int | None) -> int:
    """A record's time, also where its producer gave micro- or nanoseconds; 0 where it gave none."""
    if timestamp is None or timestamp < 0:
        return 0
    while timestamp >= _LATEST_MS:
        timestamp //= 1000
    return timestamp


def position_of(record: Record) -> SourcePosition:
    """Where a record stands; for a replayed one, where the original stands."""
    return _position(record, _REPLAY) or SourcePosition(
        topic=record.topic,
        topic_id=record.topic_id,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
    )


def replayed(record: Record) -> bool:
    """Whether a record was sent again, see :func:`replay_headers`."""
    return _position(record, _REPLAY) is not None


def origin(letter: Record) -> SourcePosition | None:
    """Position of the record that became this dead letter; None if the letter does not say."""
    return _position(letter, "")


def own_headers(record: Record) -> Headers:
    """The headers that are not biobracket's."""
    return tuple((name, value) for name, value in record.headers if not name.startswith(_HEADER))


def replay_headers(record: Record, original: SourcePosition) -> Headers:
    """Headers to send a record's key and value with again: its own, and where the original stands.

    A replay takes the place of the original among the versions of a document: it never replaces a later one.
    """
    return own_headers(record) + place_headers(original)


def place_headers(position: SourcePosition) -> Headers:
    """Headers that give a record this place among the versions of its document, instead of its own."""
    return _position_headers(position, _REPLAY)


def erases(record: Record) -> bool:
    """Whether a record of documents asks for an erasure: a key alone, as Kafka deletes. An empty value is none."""
    return record.key is not None and record.value is None and record.problem is None


def erasure_headers(position: SourcePosition) -> Headers:
    """Headers of an erased document's record on the topic of entities: where the erasure stands."""
    return _position_headers(position, _ERASED)


def erasure_of(record: Record) -> Erasure | None:
    """The erasure that such a record tells of; None if it tells of none."""
    position = _position(record, _ERASED) if erases(record) else None
    try:
        return None if position is None else Erasure(document_id=(record.key or b"").decode(), source=position)
    except (UnicodeDecodeError, ValidationError):
        return None


def dead_letter_headers(record: Record, reason: str, field: str | None = None) -> Headers:
    """Headers of a dead letter: the reason, where the record (or its original) stands, and the record's own headers.

    The dead letter keeps the record's key and value bytes, so it can be replayed: see :func:`replay_headers`.
    ``reason`` is one of :data:`DeadLetterReason`. A ``field`` that does not look like a field name is left out: names
    can come from the document, and headers end up in logs of other tools.
    """
    if reason not in get_args(DeadLetterReason):
        raise ValueError(f"reason: not one of {', '.join(get_args(DeadLetterReason))}")
    added = {"reason": reason, "at-ms": str(time.time_ns() // 1_000_000)}
    if field is not None and _CODE.fullmatch(field):
        added["field"] = field
    if record.span > 1:
        added["span"] = str(record.span)
    named = tuple((_HEADER + name, value.encode()) for name, value in added.items())
    return own_headers(record) + _position_headers(position_of(record), "") + named


def _position_headers(position: SourcePosition, prefix: str) -> Headers:
    values = {
        "topic": position.topic,
        "topic-id": position.topic_id,
        "partition": position.partition,
        "offset": position.offset,
        "timestamp-ms": position.timestamp_ms,
    }
    return tuple((f"{_HEADER}{prefix}{name}", str(value).encode()) for name, value in values.items())


def _position(record: Record, prefix: str) -> SourcePosition | None:
    start = _HEADER + prefix
    told = {name[len(start) :].replace("-", "_"): value for name, value in record.headers if name.startswith(start)}
    try:
        return SourcePosition.model_validate(
            {name: told[name].decode() for name in SourcePosition.model_fields if name in told}
        )
    except ValueError:  # not UTF-8, or no position
        return None
