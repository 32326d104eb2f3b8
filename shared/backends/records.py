"""Records of a stream and the headers of dead letters; needs no Kafka client."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, get_args

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
    # A result broke the offset invariant: a bug.
    "refused",
]
_HEADER = "biobracket."
_CODE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record as read; ``timestamp_ms`` is milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers = ()

    @property
    def mark(self) -> str:
        """Identifies the record, even if the topic is recreated."""
        return f"{self.topic}-{self.partition}-{self.offset}-{self.timestamp_ms}"


def dead_letter_headers(record: Record, reason: str, field: str | None = None) -> Headers:
    """Headers of a dead letter: the reason, where the record came from, and the record's own headers.

    The dead letter keeps the record's key and value bytes, so sending them to the topic in ``biobracket.topic`` with
    the remaining headers replays it. ``reason`` is one of :data:`DeadLetterReason`. A ``field`` that does not look like
    a field name is left out: names can come from the document, and headers end up in logs of other tools.
    """
    if reason not in get_args(DeadLetterReason):
        raise ValueError(f"reason: not one of {', '.join(get_args(DeadLetterReason))}")
    kept = tuple((name, value) for name, value in record.headers if not name.startswith(_HEADER))
    added = {
        "reason": reason,
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp-ms": str(record.timestamp_ms),
        "at-ms": str(time.time_ns() // 1_000_000),
    }
    if field is not None and _CODE.fullmatch(field):
        added["field"] = field
    return kept + tuple((_HEADER + name, value.encode()) for name, value in added.items())


def whence(letter: Record) -> tuple[str, int, int, int] | None:
    """Topic, partition, offset and timestamp of the record that became this dead letter; None if it does not say."""
    told = dict(letter.headers)
    try:
        topic, *numbers = (told[_HEADER + name] for name in ("topic", "partition", "offset", "timestamp-ms"))
        partition, offset, timestamp = map(int, numbers)
        return topic.decode(), partition, offset, timestamp
    except (KeyError, ValueError):
        return None
