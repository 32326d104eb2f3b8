"""Fills an empty or partial store from the entities topic, which holds the last result of each document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from pydantic import ValidationError

from shared.backends.records import Record, erasure_of
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Scan
from shared.messages import Extraction
from shared.settings import Settings

# A write waits for the network most of the time.
_WRITERS = 8


@dataclass(frozen=True, slots=True)
class RebuildCounts:
    """Records of the entities topic: those that were ``written``, and those of which the store had as much or more.

    ``erased``: documents that are erased, also where a later record or the store said so already.
    """

    written: int = 0
    unchanged: int = 0
    superseded: int = 0
    unreadable: int = 0  # of another version of biobracket, or somebody else's
    erased: int = 0

    def __str__(self) -> str:
        said = f"{self.written:,} results written, {self.unchanged + self.superseded:,} there already"
        said += f", {self.erased:,} erased" if self.erased else ""
        return said + (f", {self.unreadable:,} records cannot be read" if self.unreadable else "")


def rebuild(settings: Settings, report: Callable[[int, int], None] = lambda read, total: None) -> RebuildCounts:
    """Writes what is missing. May run beside ingest, and again: an earlier version never replaces a later one.

    ``report`` gets records read, and to read. Errors: StreamError, StoreError.
    """
    counts: Counter[str] = Counter()
    with (
        closing(ResultStore.from_settings(settings)) as store,
        closing(Scan(settings, settings.topic_entities)) as scan,
        ThreadPoolExecutor(_WRITERS) as writers,
    ):

        def write(record: Record) -> str:
            if record.value is None:
                erasure = erasure_of(record)
                if erasure is None:  # somebody else deleted the key
                    return "unreadable"
                store.erase(erasure, published=True)
                return "erased"
            try:
                extraction = Extraction.model_validate_json(record.value or b"")
            except ValidationError:
                return "unreadable"
            return store.put(extraction, published=True).outcome

        for records in scan.read():
            counts.update(writers.map(write, records))
            report(*scan.progress())
    return RebuildCounts(**counts)
