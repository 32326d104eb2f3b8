"""A trail is found right as it was written, and wrong after any change."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit_trail import AuditTrail, Flaw, Verified, verify

KEY = b"k" * 32


def trail(entries: int, key: bytes = b"", end: bool = True) -> list[bytes]:
    lines: list[bytes] = []
    made = AuditTrail(lines.append, key)
    for n in range(entries):
        made.add("ward-7", "read", f"note-{n}", "200")
    if end:
        made.close()
    return lines


def flaws(lines: list[bytes], key: bytes = b"") -> list[Flaw]:
    return list(verify(lines, Verified(), key))


@pytest.mark.parametrize("key", [b"", KEY])
def test_what_was_written_is_right(key: bytes) -> None:
    counts = Verified()
    assert list(verify([*trail(5, key), *trail(2, key, end=False)], counts, key)) == []
    assert (counts.entries, counts.chains, counts.open) == (8, 2, 1)


def test_documents_are_named_by_digests_alone() -> None:
    lines: list[bytes] = []
    AuditTrail(lines.append).add("ward-7", "forget", "王小明-1975", "204")
    entry = json.loads(lines[0])
    assert (entry["who"], entry["action"], entry["outcome"]) == ("ward-7", "forget", "204")
    assert len(entry["what"]) == 64
    assert b"1975" not in lines[0].replace(entry["what"].encode(), b"")


@given(st.data())
def test_one_changed_character_is_found(data: st.DataObject) -> None:
    lines = trail(4, KEY)
    at = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[at]) - 2))
    character = data.draw(st.integers(0x20, 0x7E).filter(lambda c: c != lines[at][place]))
    lines[at] = lines[at][:place] + bytes([character]) + lines[at][place + 1 :]
    assert any(flaw.line >= at + 1 for flaw in flaws(lines, KEY))


@given(st.integers(2, 6), st.data())
def test_a_missing_or_moved_entry_is_found(entries: int, data: st.DataObject) -> None:
    lines = trail(entries)
    gone = data.draw(st.integers(0, entries - 1))  # an end that is cut off leaves the chain open
    assert flaws(lines[:gone] + lines[gone + 1 :])
    other = data.draw(st.integers(0, entries).filter(lambda n: n != gone))
    moved = lines.copy()
    moved[gone], moved[other] = moved[other], moved[gone]
    assert flaws(moved)
    assert flaws([*lines[: gone + 1], *lines[gone:]])


def test_an_end_that_was_cut_off_leaves_the_chain_open() -> None:
    counts = Verified()
    assert list(verify(trail(3)[:-1], counts)) == []
    assert counts.open == 1


def test_a_chain_made_anew_without_the_key_is_found() -> None:
    assert flaws(trail(3), KEY)
    assert flaws(trail(3, b"another"), KEY)


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_line_that_is_no_entry_is_a_flaw(content: bytes | str) -> None:
    line = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    assert flaws([line]) == [Flaw(1, "is not an entry")]


def test_threads_write_one_chain_into_a_file_of_its_owner(tmp_path: Path) -> None:
    made = AuditTrail.in_folder(tmp_path / "trail", KEY)
    threads = [
        threading.Thread(target=lambda: [made.add("a", "extract", str(n), "200") for n in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.close()
    (file,) = (tmp_path / "trail").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    counts = Verified()
    assert list(verify(file.read_bytes().splitlines(), counts, KEY)) == []
    assert (counts.entries, counts.chains, counts.open) == (201, 1, 0)
