"""``biobracket export``: results in the formats of others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import DataOption, attached_settings, fail, out, warn
from services.cli.document_files import check_readable
from shared.formats.offsets import OffsetUnit
from shared.formats.registry import FormatKey

if TYPE_CHECKING:
    from collections import Counter

    from shared.formats.common import Annotated as Made
    from shared.formats.common import Writing
    from shared.messages import Extraction


def export(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Documents whose stored results are written.")
    ] = None,
    format_: Annotated[FormatKey, typer.Option("--format", help="Format to write.")] = "json",
    to: Annotated[Path, typer.Option("--out", help="File to write; for brat a folder, or a .zip.")] = Path("-"),
    results: Annotated[
        list[str] | None,
        typer.Option("--results", help="File of results, one JSON object a line as on `entities`; repeatable."),
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option("--texts", help="File of the documents, as for `produce`: results hold no text; repeatable."),
    ] = None,
    unit: Annotated[
        OffsetUnit | None, typer.Option("--offset-unit", help="What offsets count, where the format leaves a choice.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Write results as BioC, PubTator, brat, CoNLL, CBLUE, Web Annotation, DocBin, Parquet, FHIR, HTML or JSON.

    What a format cannot hold is counted and told.
    """
    from shared.errors import FormatError
    from shared.formats.common import annotated
    from shared.formats.registry import writing as options

    if to == Path("-"):
        fail("out: names no file; give one with --out")
    if bool(ids) == bool(results):
        fail("results: give either ids of stored results or files of results with --results")
    check_readable([*(results or ()), *(texts or ())])
    try:
        writing = options(format_, unit)
        known = _texts(texts or [])
        found = _newest(results) if results else _stored(ids or [], data)
        made = (annotated(extraction, known.get(extraction.document_id)) for extraction in found)
        number = _write(format_, to, made, writing)
    except FormatError as error:
        fail(str(error))
    except OSError as error:
        fail(f"out: {to} cannot be written ({error.strerror}); name another file with --out")
    out.print(f"wrote {number} documents to {to}", markup=False, highlight=False, soft_wrap=True)
    _tell("lost", writing.lost)
    _tell("changed", writing.changed)


def _write(format_: FormatKey, to: Path, made: Iterator[Made], writing: Writing) -> int:
    """Writes to a file beside the one named, which then takes its place; how many documents."""
    from shared.formats import brat
    from shared.formats.registry import FORMATS

    number = 0

    def counted() -> Iterator[Made]:
        nonlocal number
        for each in made:
            number += 1
            yield each

    if format_ == "brat" and to.suffix != ".zip":
        to.mkdir(parents=True, exist_ok=True)
        for name, content in brat.files(counted(), writing):
            (to / name).write_bytes(content)
        return number
    part = to.with_name(f".{to.name}.part")
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as written:
            FORMATS[format_].write(counted(), written, writing)
        os.replace(part, to)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return number


def _texts(files: Sequence[str]) -> dict[str, str]:
    """The text of each document, by id; the last of an id."""
    from services.cli.console import progress_bar
    from services.cli.document_files import records

    found: dict[str, str] = {}
    with progress_bar() as progress:
        for record in records(files, progress) if files else ():
            if record.problem is not None or record.value is None:
                fail(f"{record.place}: {record.problem}")
            document = json.loads(record.value)
            found[document["id"]] = document["text"]
    return found


def _stored(ids: Sequence[str], data: Path | None) -> Iterator[Extraction]:
    from shared.backends.result_store import ResultStore
    from shared.errors import StoreError

    try:
        store = ResultStore.from_settings(attached_settings(data))
        for document_id in dict.fromkeys(ids):
            if (extraction := store.get(document_id)) is None:
                fail("id: no result is stored for one of these documents; check the identifiers with `biobracket get`")
            yield extraction
        store.close()
    except StoreError as error:
        fail(str(error))


def _newest(files: Sequence[str]) -> Iterator[Extraction]:
    """The last result of each document in files of results."""
    from pydantic import ValidationError

    from shared.messages import Extraction

    last: dict[str, Extraction] = {}
    for file in files:
        with Path(file).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        extraction = Extraction.model_validate_json(line)
                    except ValidationError:
                        # Its message would hold what stands there.
                        fail(f"{file}, line {number}: is no result; give lines as on the topic of entities")
                    last[extraction.document_id] = extraction
    yield from last.values()


def _tell(what: str, counts: Counter[str]) -> None:
    for reason, number in (+counts).most_common():
        warn(f"{what}: {number} × {reason}")
