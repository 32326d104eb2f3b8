from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.backends.watched_file import WatchedFile


def test_a_change_counts_at_the_next_use_and_nothing_is_parsed_twice(tmp_path: Path) -> None:
    file, parsed = tmp_path / "a", []

    def parse(content: bytes) -> int:
        parsed.append(content)
        return int(content)

    watched = WatchedFile(file, parse)
    with pytest.raises(FileNotFoundError):
        watched.get()
    file.write_bytes(b"1")
    assert [watched.get(), watched.get()] == [1, 1]
    (tmp_path / "b").write_bytes(b"2")
    os.utime(tmp_path / "b", ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(tmp_path / "b", file)  # of the same size and time
    assert watched.get() == 2
    file.write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            watched.get()
    assert parsed == [b"1", b"2", b"x"]
    file.unlink()
    with pytest.raises(FileNotFoundError):
        watched.get()
