"""A generator's tagged lines kept in a file, for runs on the same texts that differ in selection alone.

A SQLite database, with one line for each segment text and set of types. Concurrent runs can share it, and an
interrupted run resumes where it was. It holds clinical text, which is encrypted where there are keys.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.backends.vault import PLAIN, SealError, Vault
from shared.errors import StoreError

_AT_ONCE = 500  # keys in a query; SQLite takes at least 999
_PATIENCE_S = 60.0  # to wait for another run's write


class LineFileError(ValueError):
    """A file that cannot hold lines; the message names it and the remedy."""


class LineFile:
    """A :class:`services.pipeline.assembly.SegmentCache` in a file. Thread-safe."""

    def __init__(self, path: Path, vault: Vault = PLAIN) -> None:
        """Opens or creates the file. :class:`LineFileError` where that fails or the file is no line file.

        Lines that the vault's keys do not open are generated again.
        """
        self._vault = vault
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
        names = [self._vault.member("line", key) for key in keys]
        for begin in range(0, len(names), _AT_ONCE):
            some = names[begin : begin + _AT_ONCE]
            with self._ours() as database:
                where = f"key IN ({','.join('?' * len(some))})"
                found.update(database.execute(f"SELECT key, line FROM lines WHERE {where}", some))  # noqa: S608 - marks
        return [self._opened(name, found.get(name)) for name in names]

    def put_segments(self, values: Mapping[str, bytes]) -> None:
        with self._ours() as database:
            names = ((self._vault.member("line", key), value) for key, value in values.items())
            rows = [(name, self._vault.seal(value, _place(name))) for name, value in names]
            database.executemany("INSERT OR REPLACE INTO lines VALUES (?, ?)", rows)

    def _opened(self, name: str, line: bytes | None) -> bytes | None:
        try:
            return None if line is None else self._vault.open(line, _place(name))
        except SealError:
            return None

    @contextmanager
    def _ours(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._turn, self._database:
                yield self._database
        except sqlite3.Error as error:
            raise StoreError(f"lines: {error}; free disk space, or name another file", retryable=False) from None


def _place(name: str) -> str:
    return f"lines\x1f{name}"
