"""Files of documents to records for Kafka: texts, JSON lines, whole JSON, each of them compressed or from a pipe."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pydantic import ValidationError

from services.cli.console import fail
from shared.errors import DocumentError

if TYPE_CHECKING:
    from rich.progress import Progress

TEXT_ENDINGS = (".txt", ".text", ".md", ".markdown")
_VISIBLE = re.compile(r"\S")
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_NEITHER = DocumentError(
    "file",
    "holds neither documents as JSON nor a text",
    "write one JSON object a line, or give a text file the ending .txt or .md",
)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is sent of a file, and what is wrong with it; no ``value`` where nothing can be sent."""

    place: str
    key: bytes | None
    value: bytes | None
    problem: str | None


def unreadable(file: str) -> str | None:
    """What is wrong with a file that cannot be read; ``-`` is standard input, and pipes are files."""
    if file == "-":
        return None
    if Path(file).is_dir():
        return f"file: {file} is a folder; name its files, e.g. {file.rstrip('/')}/*.txt"
    if not Path(file).exists() or not os.access(file, os.R_OK):
        return f"file: cannot read {file}; name a file that is there, or - for standard input"
    return None


def check_readable(files: Iterable[str]) -> None:
    """Ends the command at the first file that cannot be read."""
    for file in files:
        if (said := unreadable(file)) is not None:
            fail(said)


def read_text(file: str) -> str:
    """The text of a file. DocumentError where it is not UTF-8 or its compression is damaged."""
    with _opened(file) as content:
        return _decoded(content.read(), "text")


def records(files: Sequence[str], progress: Progress) -> Iterator[FileRecord]:
    """The documents of files, in order. A file that holds none is one record that says so."""
    names = _names(files)
    for file in files:
        size = None if file == "-" else Path(file).stat().st_size or None  # a pipe has none
        task = progress.add_task("standard input" if file == "-" else Path(file).name, total=size)
        place = "standard input" if file == "-" else file
        try:
            with _opened(file) as content:
                if file in names:
                    yield _of_text(place, names[file], content)
                else:
                    for record, consumed in _of_json(place, content):
                        yield record
                        progress.advance(task, consumed)
        except DocumentError as error:
            yield FileRecord(place, None, None, str(error))
        progress.update(task, completed=size)


# -- texts -------------------------------------------------------------------------------------------------------------


def _is_text(file: str) -> bool:
    return file != "-" and file.lower().removesuffix(".gz").endswith(TEXT_ENDINGS)


def _names(files: Iterable[str]) -> dict[str, str]:
    """The id of each text file: its name, and where several have that, its path below the folder they share."""
    paths = {file: Path(file) for file in files if _is_text(file)}
    short = {file: path.name[:-3] if path.suffix.lower() == ".gz" else path.name for file, path in paths.items()}
    real = {file: path.resolve() for file, path in paths.items()}
    count = Counter(short[file] for file in {real[file]: file for file in paths}.values())
    names = {}
    for file, name in short.items():
        if count[name] > 1:
            alike = [str(real[other].parent) for other in paths if short[other] == name]
            name = real[file].relative_to(os.path.commonpath(alike)).as_posix()
        names[file] = name
    return names


def _of_text(place: str, name: str, content: BinaryIO) -> FileRecord:
    from shared.messages import Document

    text = _decoded(content.read(), "text")
    try:
        document = Document(id=name, text=text)
    except ValidationError:
        return FileRecord(place, None, None, "id: the file's name is too long or not Unicode; rename it")
    return FileRecord(place, document.id.encode(), document.model_dump_json().encode(), None)


# -- JSON --------------------------------------------------------------------------------------------------------------


def _of_json(place: str, content: BinaryIO) -> Iterator[tuple[FileRecord, int]]:
    """The documents of JSON lines, sent as they are, or of whole JSON values; with the bytes that each took."""
    read: list[bytes] = []  # the lines up to the second that is not empty
    for line in content:
        read.append(line)
        if sum(bool(one.strip()) for one in read) == 2:
            break
    first, *second = [line.removeprefix(_BOM) for line in read if line.strip()] or [b""]
    if first and not first.lstrip().startswith((b"{", b"[")):
        raise _NEITHER
    if first and not _is_object(first) and not any(map(_is_object, second)):
        yield from _of_values(place, b"".join(read) + content.read())
        return
    number = 0
    for lines in (read, content):
        for line in lines:
            number += 1
            value = line.removesuffix(b"\n").removesuffix(b"\r")
            if value.strip():
                yield _admitted(f"{place}, line {number}", value), len(line)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _of_values(place: str, content: bytes) -> Iterator[tuple[FileRecord, int]]:
    """The documents of JSON that goes over several lines, or of lists. DocumentError where it holds anything else."""
    text = _decoded(content, "file")
    decoder = json.JSONDecoder()
    documents: list[Any] = []
    at = 0
    try:
        while (found := _VISIBLE.search(text, at)) is not None:
            value, at = decoder.raw_decode(text, found.start())
            documents += value if isinstance(value, list) else [value]
    except RecursionError:
        raise _NEITHER from None
    except ValueError as error:
        # A number of thousands of digits is refused without its place.
        where = f"is not JSON from line {error.lineno} on" if isinstance(error, json.JSONDecodeError) else "is not JSON"
        raise DocumentError("file", where, "write one JSON object a line, or a list of them") from None
    if not all(isinstance(document, dict) for document in documents):
        raise _NEITHER
    for number, document in enumerate(documents, 1):
        yield _admitted(f"{place}, document {number}", json.dumps(document).encode()), len(content) // len(documents)


def _admitted(place: str, value: bytes) -> FileRecord:
    from services.ingest.admission import admit

    try:
        return FileRecord(place, admit(value).id.encode(), value, None)
    except DocumentError as error:
        return FileRecord(place, None, value, str(error))


# -- bytes -------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where they are gzip's. DocumentError where they are damaged."""
    with sys.stdin.buffer if file == "-" else Path(file).open("rb") as raw:
        content = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, raw))
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=content)) if content.peek(2)[:2] == _GZIP else content
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise DocumentError("file", "is damaged gzip", "compress it again") from None


def _decoded(raw: bytes, field: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DocumentError(field, "is not UTF-8", "convert the file, e.g. iconv -f gb18030 -t utf-8") from None
