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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from services.ingest.admission import admit, admit_erasure
from shared.backends.records import Partition, Record, erases, erasure_of, origin, position_of, replay_headers
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Scan
from shared.backends.streams.sink import Sink
from shared.errors import DocumentError
from shared.messages import Erasure, Extraction, SourcePosition
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
CREATE TABLE out (digest BLOB PRIMARY KEY, outcome TEXT) WITHOUT ROWID;
CREATE TABLE missing (
    topic TEXT, partition INTEGER, offset INTEGER, PRIMARY KEY (topic, partition, offset)
) WITHOUT ROWID;
"""

# What is going on, records read, and records to read.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class AuditCounts:
    """Records of the documents topic below the committed offsets.

    ``superseded``: those without a result of their own, since a later version of their document has one, or since the
    document was erased. ``erasures``: those that ask for one which was carried out.
    ``resent``: those of the missing ones that were sent again.
    """

    records: int = 0
    results: int = 0
    superseded: int = 0
    erasures: int = 0
    dead_letters: int = 0
    missing: int = 0
    resent: int = 0

    def __str__(self) -> str:
        said = [f"{self.records:,} records", f"{self.results:,} results"]
        if self.superseded:
            said.append(f"{self.superseded:,} superseded by a later version of the document")
        if self.erasures:
            said.append(f"{self.erasures:,} erasures")
        said += [f"{self.dead_letters:,} dead letters", f"{self.missing:,} missing"]
        if self.resent:
            said.append(f"{self.resent:,} sent again")
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

    def run(self, *, resend: bool = False, report: Report = lambda *_: None) -> AuditCounts:
        """AuditCounts, after which :meth:`missing` tells which; with ``resend`` the missing ones are sent again.

        A record that is sent again keeps its place among the versions of its document: see
        :func:`shared.backends.records.replay_headers`.
        """
        self._report = report
        with closing(Scan(self._settings, self._topic)) as scan, closing(self._store()) as store:
            committed = scan.committed(self._group)
            self._read_out(self._settings.topic_entities, "results", _result)
            self._read_out(self._settings.topic_dead_letters, "dead_letters", origin)
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

    def _read_out(self, topic: str, outcome: str, position: Callable[[Record], SourcePosition | None]) -> None:
        with closing(Scan(self._settings, topic)) as scan:
            for records in self._scanned(scan, f"reading {topic}", since_ms=max(0, self._since_ms - _SKEW_MS)):
                places = [_place(place) for record in records if (place := position(record)) is not None]
                self._db.execute("BEGIN")
                self._db.executemany("INSERT OR IGNORE INTO out VALUES (?, ?)", [(each, outcome) for each in places])
                self._db.execute("COMMIT")

    def _scanned(
        self, scan: Scan, what: str, until: Mapping[int, int] | None = None, since_ms: int = 0
    ) -> Iterator[list[Record]]:
        for records in scan.read(until, since_ms=since_ms):
            yield records
            self._report(what, *scan.progress())

    def _judge(self, scan: Scan, store: ResultStore, committed: Mapping[int, int]) -> AuditCounts:
        counts = AuditCounts()
        for records in self._scanned(scan, f"auditing {self._topic}", committed, self._since_ms):
            undecided: list[tuple[Record, str, str | None]] = []
            lost: list[Record] = []
            found: Counter[str] = Counter()
            for record in records:
                if (outcome := self._outcome(position_of(record))) is not None:
                    found["erasures" if erases(record) and outcome == "results" else outcome] += 1
                elif (document := _document(record)) is not None:
                    undecided.append((record, *document))
                else:
                    lost.append(record)
            for start in range(0, len(undecided), _LOOK_UPS):
                some = undecided[start : start + _LOOK_UPS]
                for (record, _, sha256), newest in zip(some, store.newest([id_ for _, id_, _ in some]), strict=True):
                    if (verdict := _verdict(record, sha256, newest)) is None:
                        lost.append(record)
                    else:
                        found[verdict] += 1
            self._db.execute("BEGIN")
            self._db.executemany(
                "INSERT INTO missing VALUES (?, ?, ?)", [(r.topic, r.partition, r.offset) for r in lost]
            )
            self._db.execute("COMMIT")
            counts = replace(
                counts,
                records=counts.records + len(records),
                results=counts.results + found["results"],
                superseded=counts.superseded + found["superseded"],
                erasures=counts.erasures + found["erasures"],
                dead_letters=counts.dead_letters + found["dead_letters"],
                missing=counts.missing + len(lost),
            )
        return counts

    def _resend(self, scan: Scan, counts: AuditCounts) -> AuditCounts:
        ends = dict(self._db.execute("SELECT partition, max(offset) + 1 FROM missing GROUP BY partition"))
        waiting = []
        sent = 0
        with closing(Sink(self._settings)) as sink:
            for records in self._scanned(scan, f"sending to {self._topic}", ends, self._since_ms):
                for record in records:
                    if self._db.execute(
                        "SELECT 1 FROM missing WHERE topic = ? AND partition = ? AND offset = ?",
                        (record.topic, record.partition, record.offset),
                    ).fetchone():
                        headers = replay_headers(record, position_of(record))
                        waiting.append(sink.send(self._topic, record.key, record.value, headers))
                        sent += 1
                while len(waiting) > _UNACKNOWLEDGED:
                    waiting.pop(0).result()
            for future in waiting:
                future.result()
        return replace(counts, resent=sent)

    def _outcome(self, position: SourcePosition) -> str | None:
        found = self._db.execute("SELECT outcome FROM out WHERE digest = ?", (_place(position),)).fetchone()
        return None if found is None else str(found[0])


def _document(record: Record) -> tuple[str, str | None] | None:
    """Id and text hash of the document that a record holds; of one that is to be erased the id alone.

    What holds none may have been erased all the same, by its key.
    """
    try:
        if erases(record):
            return admit_erasure(record).document_id, None
        document = admit(record.value)
    except DocumentError:
        return (record.key.decode("utf-8", "replace"), None) if record.key else None
    return document.id, document.sha256


def _verdict(record: Record, sha256: str | None, newest: Extraction | Erasure | None) -> str | None:
    """What became of a record by the newest version of its document in the store; None if nothing did."""
    if newest is None:
        return None
    place = position_of(record)
    if isinstance(newest, Erasure):
        if place.later_than(newest.source):
            return None
        return "superseded" if newest.source.later_than(place) or not erases(record) else "erasures"
    if newest.source is None:  # of an earlier version of biobracket
        return "results" if newest.text_sha256 == sha256 else None
    if newest.source.later_than(place):
        return "superseded" if sha256 is not None or erases(record) else None
    return None if place.later_than(newest.source) or sha256 is None else "results"


def _result(record: Record) -> SourcePosition | None:
    if (erasure := erasure_of(record)) is not None:
        return erasure.source
    try:
        return Extraction.model_validate_json(record.value or b"").source
    except ValidationError:  # of another version of biobracket, or somebody else's
        return None


def _place(position: SourcePosition) -> bytes:
    # Without the id of the topic, which not every client is told; the time stands for it.
    parts = (position.topic, str(position.partition), str(position.offset), str(position.timestamp_ms))
    told = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()[:16]
