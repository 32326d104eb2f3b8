"""A file whose content is taken up again when it changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


def state_of(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """What differs once a file is another or has changed. Raises OSError where it cannot be looked at."""
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino, stat.st_dev


class WatchedFile(Generic[T]):
    """What ``parse`` makes of a file, read again once the file is another or has changed.

    Looking costs one ``stat``, so it is done at each use: what an operator takes away is gone with the next request.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], T]) -> None:
        self._path = path
        self._parse = parse
        self._seen: tuple[int, ...] | None = None
        self._value: T | Exception

    def get(self) -> T:
        """Raises OSError where the file cannot be read, and what ``parse`` raises."""
        seen = state_of(self._path)
        if seen != self._seen:
            content = self._path.read_bytes()
            try:
                self._value = self._parse(content)
            except Exception as error:
                self._value = error
            self._seen = seen
        if isinstance(self._value, Exception):
            raise self._value.with_traceback(None)  # which would grow with each use
        return self._value
