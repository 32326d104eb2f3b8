from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.backends import secret_file


def test_it_is_the_owners_and_never_half_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with secret_file.locked(path):
        secret_file.write(path, "one")
        secret_file.write(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UnicodeEncodeError):
        secret_file.write(path, "\ud800")
    assert path.read_text() == "two"
    assert sorted(each.name for each in path.parent.iterdir()) == [".file.lock", "file"]


def test_writers_wait_for_one_another(tmp_path: Path) -> None:
    path = tmp_path / "count"
    secret_file.write(path, "0")

    def count(_: int) -> None:
        with secret_file.locked(path):
            secret_file.write(path, str(int(path.read_text()) + 1))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(count, range(40)))
    assert path.read_text() == "40"
