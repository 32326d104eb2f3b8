from __future__ import annotations

import gzip
import io
import json
import os
import re
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from services.cli.document_files import FileRecord, read_text, records, unreadable
from shared.errors import DocumentError

SECRET = "zq17"
DOCUMENTS = [{"id": "a", "text": "发热"}, {"id": "b", "text": f"{SECRET} asthma", "metadata": {"ward": 7}}]


def read(*files: Path | str) -> list[FileRecord]:
    return list(records([str(file) for file in files], Progress(disable=True)))


def write(file: Path, content: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def documents(found: list[FileRecord]) -> list[dict[str, object]]:
    assert all(record.problem is None for record in found)
    return [json.loads(record.value or b"") for record in found]


def refused(*files: Path | str) -> str:
    """What is said of a file of which nothing is sent."""
    (record,) = read(*files)
    assert record.value is record.key is None
    assert record.problem is not None
    assert SECRET not in record.problem
    assert "\n" not in record.problem
    return record.problem


@pytest.mark.parametrize("name", ["note.txt", "note.TXT", "note.md", "note.text", "note.markdown"])
@pytest.mark.parametrize("compressed", [False, True])
def test_texts(tmp_path: Path, name: str, compressed: bool) -> None:
    text = "# Arztbrief\r\n\r\n{发热}\n"
    file = tmp_path / (name + ".gz" * compressed)
    write(file, gzip.compress(text.encode()) if compressed else "\ufeff" + text)
    (record,) = read(file)
    assert record.key == name.encode()
    assert [(d["id"], d["text"]) for d in documents([record])] == [(name, text)]
    assert read_text(str(file)) == text


def test_ids_carry_the_path_where_names_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a/note.txt", "b/c/note.txt", "b/other.txt", "b/note.txt.gz"]
    for name in names:
        write(tmp_path / name, gzip.compress(b"x") if name.endswith("gz") else b"x")
    ids = [b"a/note.txt", b"b/c/note.txt", b"other.txt", b"b/note.txt.gz"]
    assert [record.key for record in read(*(tmp_path / name for name in names))] == ids
    monkeypatch.chdir(tmp_path)
    assert [record.key for record in read(*names)] == ids
    monkeypatch.chdir(tmp_path / "a")
    assert [record.key for record in read("note.txt", "../b/c/note.txt", "../b/other.txt", "../b/note.txt.gz")] == ids
    assert [record.key for record in read("note.txt", tmp_path / "a" / "note.txt")] == [b"note.txt"] * 2  # one file


@pytest.mark.parametrize(
    "content",
    [
        "".join(json.dumps(d) + "\n" for d in DOCUMENTS),
        "\n" + "\r\n\r\n".join(json.dumps(d, ensure_ascii=False) for d in DOCUMENTS),
        "\ufeff" + "\n".join(json.dumps(d) for d in DOCUMENTS),
        json.dumps(DOCUMENTS),
        json.dumps(DOCUMENTS, indent=2, ensure_ascii=False),
        "\n".join(json.dumps(d, indent=4) for d in DOCUMENTS),  # as jq prints them
        "\ufeff[\n" + ",\n".join(json.dumps(d) for d in DOCUMENTS) + "\n]\n",
    ],
)
@pytest.mark.parametrize("name", ["notes.jsonl", "notes.json", "notes"])
@pytest.mark.parametrize("compressed", [False, True])
def test_documents_as_json(tmp_path: Path, content: str, name: str, compressed: bool) -> None:
    file = write(tmp_path / name, gzip.compress(content.encode()) if compressed else content)
    found = read(file)
    assert documents(found) == DOCUMENTS
    assert [record.key for record in found] == [b"a", b"b"]


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.none() | st.integers()), min_size=1, max_size=4))
def test_lines_are_sent_as_they_are(tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, object]]) -> None:
    lines = [json.dumps(one, ensure_ascii=i % 2 == 0).encode("utf-8") for i, one in enumerate(objects)]
    file = write(tmp_path_factory.mktemp("lines") / "a.jsonl", b"\n".join(lines))
    assert [record.value for record in read(file)] == lines


def test_one_line_that_is_broken_does_not_stop_the_others(tmp_path: Path) -> None:
    good = [json.dumps(d) for d in DOCUMENTS]
    for lines in ([f'{{"id": "{SECRET}', *good], [good[0], f"{SECRET} is not JSON", good[1]]):
        found = read(write(tmp_path / "a.jsonl", "\n".join(lines)))
        assert [record.value for record in found] == [line.encode() for line in lines]
        assert [record.key for record in found if record.problem is None] == [b"a", b"b"]
        (bad,) = [record for record in found if record.problem]
        assert bad.place.endswith(f"a.jsonl, line {found.index(bad) + 1}")
        assert SECRET not in (bad.problem or "")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"{SECRET} has a fever.\nAnd a cough.\n", r"\.txt or \.md"),
        (f"id,text\n1,{SECRET}\n", "one JSON object a line"),
        (f'[\n"{SECRET}"\n]', "one JSON object a line"),
        (f'{{\n"id": "a",\n"text": {SECRET}\n}}', "not JSON from line 3 on"),
        ("[" * 100_000, "JSON"),
        (f'{{"id": {"9" * 5000}}}', "is not JSON; write"),
        (b"PK\x03\x04", "JSON"),
        ("发热".encode("utf-16"), "JSON"),
        (b'[\n{"id": "a", "text": "\xff"}\n]', "not UTF-8"),
        (gzip.compress(b'{"id": "a", "text": "x"}' * 100)[:-20], "damaged gzip"),
    ],
)
def test_a_file_without_documents_is_refused_in_one_line(tmp_path: Path, content: bytes | str, says: str) -> None:
    assert re.search(says, refused(write(tmp_path / "a.csv", content)))


def test_a_text_that_cannot_be_read(tmp_path: Path) -> None:
    assert "iconv" in refused(write(tmp_path / "a.txt", b"\xff"))
    assert "damaged" in refused(write(tmp_path / "b.txt.gz", gzip.compress(b"abc" * 99)[:-9]))
    assert "rename" in refused(write(tmp_path / "c.gz" / os.fsdecode(b"\xff.txt"), b"x"))
    with pytest.raises(DocumentError, match="damaged"):
        read_text(str(tmp_path / "b.txt.gz"))


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl", "\n \n")) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_a_pipe(tmp_path: Path, compressed: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = "".join(json.dumps(d) + "\n" for d in DOCUMENTS).encode()
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(content) if compressed else content,))
    assert unreadable(str(pipe)) is None
    writer.start()
    assert documents(read(pipe)) == DOCUMENTS
    writer.join()


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps(DOCUMENTS, indent=1).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(content))))
    found = read("-")
    assert documents(found) == DOCUMENTS
    assert [record.place for record in found] == ["standard input, document 1", "standard input, document 2"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert unreadable("-") is None
    assert "is a folder" in (unreadable(str(tmp_path)) or "")
    assert "none.txt" in (unreadable(str(tmp_path / "none.txt")) or "")
