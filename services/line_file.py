"""A generator's lines kept in a file, for runs on the same texts that differ in selection alone.

A SQLite database: runs side by side can share one, and one that was cut off goes on where it was. It holds tagged text.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.errors import StoreError

_AT_ONCE = 500  # keys in one question; SQLite takes at least 999
_PATIENCE_S = 60.0  # for another run that writes


class LineFileError(ValueError):
    """A file that lines cannot be kept in; names it and the remedy."""


class LineFile:
    """See :class:`services.pipeline.assembly.SegmentCache`. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it. :class:`LineFileError` where it cannot, or holds something else."""
        self._turn = threading.Lock()
        try:
            self._database = sqlite3.connect(path, timeout=_PATIENCE_S, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            with self._database:
                self._database.execute("CREATE TABLE IF NOT EXISTS lines (key TEXT PRIMARY KEY, line BLOB NOT NULL)")
        except sqlite3.Error as error:
            raise LineFileError(
                f"lines: {path} cannot be used ({error}); name a file that a run made, or a new one"
            ) from None

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]:
        found: dict[str, bytes] = {}
        for begin in range(0, len(keys), _AT_ONCE):
            some = keys[begin : begin + _AT_ONCE]
            with self._ours() as database:
                where = f"key IN ({','.join('?' * len(some))})"
                found.update(database.execute(f"SELECT key, line FROM lines WHERE {where}", some))  # noqa: S608 - marks
        return [found.get(key) for key in keys]

    def put_segments(self, values: Mapping[str, bytes]) -> None:
        with self._ours() as database:
            database.executemany("INSERT OR REPLACE INTO lines VALUES (?, ?)", values.items())

    @contextmanager
    def _ours(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._turn, self._database:
                yield self._database
        except sqlite3.Error as error:
            raise StoreError(f"lines: {error}; free disk space, or name another file", retryable=False) from None
