import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.line_file import LineFile, LineFileError
from shared.backends import vault
from shared.errors import StoreError


def test_what_one_run_kept_another_finds(tmp_path):
    values = {f"key {i}": bytes([i % 256]) for i in range(2000)}
    LineFile(tmp_path / "lines").put_segments(values)
    other = LineFile(tmp_path / "lines")
    assert other.get_segments([*values, "no such"]) == [*values.values(), None]
    assert other.get_segments([]) == []
    other.put_segments({"key 1": b"new"})
    assert other.get_segments(["key 1", "key 0", "key 1"]) == [b"new", b"\x00", b"new"]


def test_threads_and_runs_can_share_it(tmp_path):
    files = [LineFile(tmp_path / "lines") for _ in range(2)]

    def work(i):
        files[i % 2].put_segments({str(i): str(i).encode()})
        return files[(i + 1) % 2].get_segments([str(i)])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(100))) == [[str(i).encode()] for i in range(100)]


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("these are notes, " * 100)
    for path in (tmp_path / "notes.txt", tmp_path / "no folder" / "lines"):
        with pytest.raises(LineFileError, match=f"lines: {path}.*name a file"):
            LineFile(path)


def test_a_file_that_fails_later_is_a_cache_that_does_not_answer(tmp_path):
    lines = LineFile(tmp_path / "lines")
    with sqlite3.connect(tmp_path / "lines") as other:
        other.execute("DROP TABLE lines")
    with pytest.raises(StoreError, match="name another"):
        lines.get_segments(["key"])
    with pytest.raises(StoreError, match="name another"):
        lines.put_segments({"key": b"value"})


def test_lines_are_encrypted_where_there_are_keys(tmp_path):
    vault.create(tmp_path / "keys")
    own = vault.KeyedVault(tmp_path / "keys")
    LineFile(tmp_path / "lines", own).put_segments({"digest-of-it": b"a cold room", "other": b"a warm one"})
    kept = b"".join(file.read_bytes() for file in tmp_path.glob("lines*"))
    assert b"room" not in kept
    assert b"digest-of-it" not in kept
    assert LineFile(tmp_path / "lines", own).get_segments(["other", "digest-of-it", "no"]) == [
        b"a warm one",
        b"a cold room",
        None,
    ]
    # Neither without keys nor at another place: then a line is generated again.
    assert LineFile(tmp_path / "lines").get_segments(["digest-of-it"]) == [None]
    with sqlite3.connect(tmp_path / "lines") as database:
        (_, line), (other, _) = database.execute("SELECT key, line FROM lines").fetchall()
        database.execute("UPDATE lines SET line = ? WHERE key = ?", (line, other))
    database.close()
    assert LineFile(tmp_path / "lines", own).get_segments(["digest-of-it", "other"]).count(None) == 1
