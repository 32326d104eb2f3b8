"""Whether every document that a group has committed came out: with a result, or as a dead letter.

What came out is kept as digests in an SQLite file, so that memory stays the same however long the topics are. The
order matters: the committed offsets are taken first, and the topics of what came out are read to their ends after that.
So what was done before its offset was committed is found, also while the application runs.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from services.ingest.admission import admit
from shared.backends.records import Partition, Record, whence
from shared.backends.result_store import ResultStore
from shared.backends.streams import Scan, Sink
from shared.errors import DocumentError
from shared.messages import Document, Extraction
from shared.settings import Settings

# The clocks of producers and of ingest may differ by so much.
_SKEW_MS = 3600 * 1000
# A result can be some MB, and so many are in memory at once.
_LOOK_UPS = 32
_UNACKNOWLEDGED = 1000
_CACHE_KIB = 64 * 1024

_AGO = re.compile(r"(\d{1,6})([mhd])")
_UNITS = {"m": 60, "h": 3600, "d": 86400}

_SCHEMA = """
CREATE TABLE out (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE missing (
    topic TEXT, partition INTEGER, offset INTEGER, time INTEGER, document BLOB, newest INTEGER DEFAULT 1,
    PRIMARY KEY (topic, partition, offset)
) WITHOUT ROWID;
CREATE INDEX missing_document ON missing (document);
"""

# What is going on, records read, and records to read.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Counts:
    """Records of the documents topic below the committed offsets; ``resent`` and ``superseded`` are missing ones."""

    records: int = 0
    results: int = 0
    dead_letters: int = 0
    missing: int = 0
    resent: int = 0
    # A later record of the same document follows: sent again, the older one would take its place.
    superseded: int = 0

    def __str__(self) -> str:
        said = [
            f"{self.records:,} records",
            f"{self.results:,} results",
            f"{self.dead_letters:,} dead letters",
            f"{self.missing:,} missing",
        ]
        if self.resent or self.superseded:
            said.append(f"{self.resent:,} sent again")
        if self.superseded:
            said.append(f"{self.superseded:,} not, since a later record of the same document follows")
        return ", ".join(said)


def since_ms(told: str, now: float) -> int:
    """A time of ISO 8601 (UTC, where it names no zone), or how long ago, as milliseconds since 1970. ValueError.

    ``now``: Unix seconds.
    """
    if ago := _AGO.fullmatch(told):
        return int((now - int(ago[1]) * _UNITS[ago[2]]) * 1000)
    try:
        moment = datetime.fromisoformat(told)
    except ValueError:
        raise ValueError(
            "since: neither a time such as 2025-11-26T08:00 nor how long ago, such as 90m, 12h or 7d"
        ) from None
    return max(0, int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))


class Audit:
    """One audit of a topic. A context manager; its file goes with it.

    Errors: StreamError, StoreError.
    """

    def __init__(self, settings: Settings, group: str, topic: str, *, since_ms: int = 0) -> None:
        """``since_ms``: milliseconds since 1970; records that are older are passed over."""
        self._settings = settings
        self._group = group
        self._topic = topic
        self._since_ms = since_ms
        self._report: Report
        self._folder = tempfile.TemporaryDirectory(prefix="biobracket-audit-")
        self._db = sqlite3.connect(Path(self._folder.name) / "audit.db", isolation_level=None)
        # Nothing of it has to survive.
        for name, value in {"journal_mode": "OFF", "synchronous": "OFF", "cache_size": -_CACHE_KIB}.items():
            self._db.execute(f"PRAGMA {name}={value}")
        self._db.executescript(_SCHEMA)

    def __enter__(self) -> Audit:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def run(self, *, resend: bool = False, report: Report = lambda *_: None) -> Counts:
        """Counts, after which :meth:`missing` tells which; with ``resend`` the missing ones are sent again.

        Of several missing records of a document only the last is sent again, and only where none of the same document
        follows in the topic.
        """
        self._report = report
        with closing(Scan(self._settings, self._topic)) as scan, closing(self._store()) as store:
            committed = scan.committed(self._group)
            self._read_out(self._settings.topic_entities, _of_result)
            self._read_out(self._settings.topic_dead_letters, _of_dead_letter)
            counts = self._judge(scan, store, committed)
            if resend and counts.missing:
                counts = self._resend(scan, counts)
        return counts

    def missing(self) -> Iterator[tuple[Partition, int]]:
        """Topic and partition, and offset, of each missing record, in their order."""
        rows = self._db.execute("SELECT topic, partition, offset FROM missing ORDER BY topic, partition, offset")
        return (((topic, partition), offset) for topic, partition, offset in rows)

    def _store(self) -> ResultStore:
        return ResultStore.from_settings(self._settings)

    def _read_out(self, topic: str, digests: Callable[[Record], Sequence[bytes]]) -> None:
        with closing(Scan(self._settings, topic)) as scan:
            for records in self._scanned(scan, f"reading {topic}", since_ms=max(0, self._since_ms - _SKEW_MS)):
                rows = [(digest,) for record in records for digest in digests(record)]
                self._db.execute("BEGIN")
                self._db.executemany("INSERT OR IGNORE INTO out VALUES (?)", rows)
                self._db.execute("COMMIT")

    def _scanned(
        self, scan: Scan, what: str, until: Mapping[int, int] | None = None, since_ms: int = 0
    ) -> Iterator[list[Record]]:
        for records in scan.read(until, since_ms=since_ms):
            yield records
            self._report(what, *scan.progress())

    def _judge(self, scan: Scan, store: ResultStore, committed: Mapping[int, int]) -> Counts:
        counts = Counts()
        for records in self._scanned(scan, f"auditing {self._topic}", committed, self._since_ms):
            undecided: list[tuple[Record, Document]] = []
            lost: list[tuple[Record, bytes | None]] = []
            results = dead = 0
            for record in records:
                document = _document(record)
                if document is not None and self._is_out(_version(document)):
                    results += 1
                elif self._is_out(_place(record)) or self._is_out(_content(record)):
                    dead += 1
                elif document is not None:
                    undecided.append((record, document))
                else:
                    lost.append((record, None))
            for start in range(0, len(undecided), _LOOK_UPS):
                some = undecided[start : start + _LOOK_UPS]
                kept = store.versions([document.id for _, document in some])
                for (record, document), (newest, marks) in zip(some, kept, strict=True):
                    if record.mark in marks or (newest is not None and _answers(newest, document)):
                        results += 1
                    else:
                        lost.append((record, _digest("document", document.id)))
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO missing (topic, partition, offset, time, document) VALUES (?, ?, ?, ?, ?)",
                [(r.topic, r.partition, r.offset, r.timestamp_ms, document) for r, document in lost],
            )
            self._db.execute("COMMIT")
            counts = replace(
                counts,
                records=counts.records + len(records),
                results=counts.results + results,
                dead_letters=counts.dead_letters + dead,
                missing=counts.missing + len(lost),
            )
        return counts

    def _resend(self, scan: Scan, counts: Counts) -> Counts:
        for records in self._scanned(scan, f"looking for later versions in {self._topic}", since_ms=self._since_ms):
            for record in records:
                if (document := _document(record)) is not None:
                    # Within a partition the offset tells which is later, across partitions the time.
                    self._db.execute(
                        "UPDATE missing SET newest = 0 WHERE document = :document AND ("
                        "partition = :partition AND offset < :offset OR partition != :partition AND "
                        "(time < :time OR time = :time AND offset < :offset))",
                        {
                            "document": _digest("document", document.id),
                            "partition": record.partition,
                            "offset": record.offset,
                            "time": record.timestamp_ms,
                        },
                    )
        ends = dict(self._db.execute("SELECT partition, max(offset) + 1 FROM missing GROUP BY partition"))
        waiting = []
        sent = 0
        with closing(Sink(self._settings)) as sink:
            for records in self._scanned(scan, f"sending to {self._topic}", ends, self._since_ms):
                for record in records:
                    if self._db.execute(
                        "SELECT 1 FROM missing WHERE topic = ? AND partition = ? AND offset = ? AND newest",
                        (record.topic, record.partition, record.offset),
                    ).fetchone():
                        waiting.append(sink.send(self._topic, record.key, record.value, record.headers))
                        sent += 1
                while len(waiting) > _UNACKNOWLEDGED:
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        (superseded,) = self._db.execute("SELECT count(*) FROM missing WHERE NOT newest").fetchone()
        return replace(counts, resent=sent, superseded=superseded)

    def _is_out(self, digest: bytes) -> bool:
        return self._db.execute("SELECT 1 FROM out WHERE digest = ?", (digest,)).fetchone() is not None


def _document(record: Record) -> Document | None:
    try:
        return admit(record.value)
    except DocumentError:
        return None


def _answers(extraction: Extraction, document: Document) -> bool:
    """Whether it is the result of this version: of this text, and of the types where the document names some."""
    return extraction.text_sha256 == document.sha256 and (
        document.types is None or sorted(document.types) == sorted(extraction.types)
    )


def _version(document: Document) -> bytes:
    types = "" if document.types is None else ",".join(sorted(document.types))
    return _digest("version", document.id, document.sha256, types)


def _of_result(record: Record) -> list[bytes]:
    try:
        extraction = Extraction.model_validate_json(record.value or b"")
    except ValidationError:  # of another version of biobracket, or somebody else's
        return []
    given = ",".join(sorted(extraction.types))
    return [_digest("version", extraction.document_id, extraction.text_sha256, types) for types in ("", given)]


def _of_dead_letter(record: Record) -> list[bytes]:
    """Where it came from, and its content: a record that is sent again comes from elsewhere."""
    came = whence(record)
    digests = [] if came is None else [_digest("place", *map(str, came))]
    if record.value:  # what was too large was left out
        digests.append(_content(record))
    return digests


def _place(record: Record) -> bytes:
    return _digest("place", record.topic, str(record.partition), str(record.offset), str(record.timestamp_ms))


def _content(record: Record) -> bytes:
    return _digest("content", hashlib.sha256(record.value or b"").hexdigest())


def _digest(*parts: str) -> bytes:
    told = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()[:16]
