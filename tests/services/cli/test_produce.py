from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shared.backends.streams.source import Source
from shared.settings import Settings
from tests.support.cli import SECRET, call, failed

pytestmark = pytest.mark.usefixtures("nothing_runs")


def produced(settings: Settings, count: int) -> list[tuple[bytes | None, bytes | None]]:
    source = Source(settings, "test", [settings.topic_documents])
    records: list[tuple[bytes | None, bytes | None]] = []
    while len(records) < count:
        records += [(r.key, r.value) for r in source.poll(0.5, 100)]
    records += [(r.key, r.value) for r in source.poll(0.5, 100)]
    source.close()
    return records


def test_without_a_running_application_the_remedy_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"{SECRET} asthma")
    assert "`biobracket up`" in failed(call("produce", str(file)))


def test_a_file_that_is_not_there() -> None:
    assert "nothing.txt" in failed(call("produce", "nothing.txt"))


def test_produce_sends_bytes_unchanged_and_warns(servers: Settings, tmp_path: Path) -> None:
    text = tmp_path / "note.txt"
    text.write_bytes("发热\r\nzq17".encode())
    lines = [
        b'{"id": "a", "text": "x",   "lang": "en"}',
        f"not JSON {SECRET}".encode(),
        b'{"id": "b", "text": "\\ud800"}',
        b"\xff\xfe",
    ]
    jsonl = tmp_path / "notes.jsonl"
    jsonl.write_bytes(b"\r\n".join(lines[:2]) + b"\n\n")
    result = call("produce", str(text), str(jsonl), "-", given=b"\n".join(lines[2:]))
    assert result.exit_code == 0, result.output
    assert "sent 5 of 5 documents" in result.stdout
    assert "3 of them are invalid" in result.stdout
    assert SECRET not in result.output
    for place, field in (("notes.jsonl, line 2", "JSON"), ("standard input, line 1", "text"), ("line 2", "UTF-8")):
        assert re.search(f"{place}: .*{field}", result.stderr)
    records = produced(servers, 5)
    assert sorted(value or b"" for _, value in records if not (value or b"").startswith(b'{"v":1')) == sorted(lines)
    (whole,) = [json.loads(value or b"") for key, value in records if key == b"note.txt"]
    assert whole["text"] == "发热\r\nzq17"
    assert {key for key, _ in records} == {b"note.txt", b"a", None}


def test_produce_refuses_a_file_without_documents_and_sends_nothing_of_it(servers: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n1,{SECRET}\n2,{SECRET}\n")
    for folder in ("b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "note.md").write_text("flu")
    result = call("produce", *(str(tmp_path / name) for name in ("a.csv", "b/note.md", "c/note.md")))
    assert result.exit_code == 1
    assert "sent 2 of 3 documents" in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert SECRET not in result.output
    assert sorted(key or b"" for key, _ in produced(servers, 2)) == [b"b/note.md", b"c/note.md"]


def test_produce_goes_on_after_what_it_cannot_send(servers: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("flu")
    result = call("produce", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert result.exit_code == 1
    assert "sent 1 of 2 documents" in result.stdout
    assert [key for key, _ in produced(servers, 1)] == [b"b.txt"]
