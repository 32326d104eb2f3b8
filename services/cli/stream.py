"""Commands of the stream: ``biobracket up``, ``demo``, ``produce``, ``get``, ``extract`` and ``status``."""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from services.cli.console import (
    DataOption,
    JsonOption,
    PortOption,
    attached_settings,
    configs,
    err,
    fail,
    load_settings,
    out,
    progress_bar,
    warn,
)
from shared.errors import DocumentError
from shared.settings import Settings

if TYPE_CHECKING:
    from services.cli.rendering import LiveCounts
    from services.embedded.runtime import Runtime
    from shared.messages import Document, Extraction

_NOTES = Path(__file__).resolve().parents[2] / "examples" / "notes.jsonl"
_TICK_S = 2.0
# Far more than a broker acknowledges at once, and still little memory.
_UNACKNOWLEDGED = 1000


def up(data: DataOption = None, port: PortOption = None) -> None:
    """Start broker, store and services on this machine, and show live counts until Ctrl-C."""
    settings = load_settings(data, port)
    with _started(settings) as runtime:
        _print_addresses(runtime)
        _watch(runtime)


def demo(
    notes: Annotated[Path, typer.Option("--notes", help="Documents to stream, one JSON object per line.")] = _NOTES,
    keep: Annotated[bool, typer.Option("--keep", help="Keep everything running afterwards, until Ctrl-C.")] = False,
    data: DataOption = None,
    port: PortOption = None,
) -> None:
    """Start everything, stream the sample notes through Kafka, and show their entities, read back from Redis."""
    documents = _notes(notes)
    settings = load_settings(data, port)
    with _started(settings) as runtime:
        complete = _stream(runtime, documents)
        if keep:
            _print_addresses(runtime)
            _watch(runtime)
    if not complete:
        raise typer.Exit(1)


def produce(
    files: Annotated[
        list[str],
        typer.Argument(
            help="*.txt and *.md: one document each. Anything else: one JSON document per line, or JSON that holds "
            "documents; also compressed (*.gz) or from a pipe; - is standard input."
        ),
    ],
    data: DataOption = None,
) -> None:
    """Send documents to Kafka.

    Lines are sent unchanged. Invalid documents are reported here and end up in the dead-letters topic; of a file that
    holds no documents at all nothing is sent.
    """
    from services.cli.document_files import records
    from shared.backends.streams.sink import Sink
    from shared.errors import StreamError

    settings = attached_settings(data)
    total = invalid = failed = 0
    waiting: list[Future[None]] = []

    def settle(everything: bool) -> int:
        lost = 0
        while waiting and (everything or len(waiting) >= _UNACKNOWLEDGED):
            try:
                waiting.pop(0).result()
            except StreamError as error:
                lost += 1
                if lost == 1:
                    warn(str(error))
        return lost

    _check_readable(files)
    try:
        sink = Sink(settings)
        with progress_bar() as progress:
            for record in records(files, progress):
                total += 1
                if record.problem is not None:
                    warn(f"{record.place}: {record.problem}")
                if record.value is None:
                    failed += 1
                    continue
                invalid += record.problem is not None
                waiting.append(sink.send(settings.topic_documents, record.key, record.value))
                failed += settle(False)
            failed += settle(True)
        sink.close()
    except StreamError as error:
        fail(str(error))
    out.print(f"sent {total - failed} of {total} documents to {settings.topic_documents}", highlight=False)
    if invalid:
        out.print(f"{invalid} of them are invalid and will be in {settings.topic_dead_letters}", highlight=False)
    if failed:
        raise typer.Exit(1)


def get(
    document_id: Annotated[str, typer.Argument(metavar="ID", help="Identifier of the document.")],
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Show the entities of a document that came in through Kafka."""
    from services.cli.rendering import entities_table
    from shared.backends.result_store import ResultStore
    from shared.errors import StoreError

    try:
        store = ResultStore.from_settings(attached_settings(data))
        extraction = store.get(document_id)
        store.close()
    except StoreError as error:
        fail(str(error))
    if extraction is None:
        fail(
            "id: no result is stored for this document; check the identifier; a document that was just sent takes a "
            "moment, and one that cannot be processed is in the dead-letters topic"
        )
    if as_json:
        sys.stdout.write(extraction.model_dump_json(indent=2) + "\n")
    else:
        out.print(entities_table(extraction) if extraction.entities else "(no entities)")


def extract(
    file: Annotated[str, typer.Argument(help="A text file; - is standard input.")],
    lang: Annotated[str | None, typer.Option("--lang", help="zh or en; default: detected.")] = None,
    types: Annotated[
        str | None, typer.Option("--types", help="Entity type keys, comma-separated; default: those of the language.")
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Extract the entities of one text over HTTP and show them; nothing is stored."""
    import httpx

    from services.cli.document_files import read_text
    from services.cli.rendering import note
    from shared.messages import Extraction

    settings = attached_settings(data)
    _check_readable([file])
    try:
        text = read_text(file)
    except DocumentError as error:
        fail(str(error))
    body: dict[str, Any] = {"text": text}
    if file != "-" and Path(file).name:
        body["id"] = Path(file).name
    if lang is not None:
        body["lang"] = lang
    if types is not None:
        body["types"] = [t.strip() for t in types.split(",") if t.strip()]
    address = f"http://{settings.http_host}:{settings.http_port}"
    try:
        with progress_bar() as progress:
            progress.add_task("extracting", total=None)
            # No timeout: the server has one. `trust_env`: no proxy must come between, or see the text.
            response = httpx.post(f"{address}/v1/extract", json=body, timeout=None, trust_env=False)  # noqa: S113
    except httpx.HTTPError:
        fail(
            f"http: nothing answers at {address}; start it with `biobracket up`, or set BIOBRACKET_HTTP_HOST and "
            "BIOBRACKET_HTTP_PORT to its address"
        )
    if response.status_code != 200:
        try:
            refusal = response.json()["error"]
            message = f"{refusal['field']}: {refusal['problem']}; {refusal['remedy']}"
        except (ValueError, KeyError, TypeError):
            message = f"http: status {response.status_code} from {address}; see its log"
        fail(message)
    if as_json:
        sys.stdout.write(json.dumps(response.json(), ensure_ascii=False, indent=2) + "\n")
    else:
        out.print(note(text, Extraction.model_validate_json(response.content)))


def status(data: DataOption = None) -> None:
    """Show documents, entities and lag."""
    from services.cli.rendering import LiveCounts
    from services.ingest.config import IngestConfig
    from shared.backends.result_store import ResultStore
    from shared.backends.streams.scan import Lag
    from shared.errors import StoreError, StreamError

    settings, group = attached_settings(data), IngestConfig().group
    try:
        store = ResultStore.from_settings(settings)
        counts = store.counts()
        store.close()
        reader = Lag(settings, group, settings.topic_documents)
        lag = reader.read()
        reader.close()
    except (StoreError, StreamError) as error:
        fail(str(error))
    out.print(str(LiveCounts(counts["documents"], counts["entities"], lag)), highlight=False)


# -- the embedded runtime ----------------------------------------------------------------------------------------------


@contextmanager
def _started(settings: Settings) -> Iterator[Runtime]:
    """A running runtime, which Ctrl-C, SIGTERM and SIGHUP stop before they end the program quietly."""
    list(configs())  # a setting that no replica could read fails here, in one line
    with _ray_silenced():
        yield from _run(settings)


@contextmanager
def _ray_silenced() -> Iterator[None]:
    """Ray prints errors of other processes to ``sys.stdout`` whatever its logging level, and they may hold text."""
    out.file = sys.stdout
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        out.file = None  # type: ignore[assignment]  # follows sys.stdout again


def _run(settings: Settings) -> Iterator[Runtime]:
    from services.embedded.runtime import Runtime, RuntimeFailure
    from shared.errors import StoreError, StreamError

    def interrupt(number: int, _: object) -> NoReturn:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, interrupt)
    failure: str | None = None
    with progress_bar() as progress:
        task = progress.add_task("starting", total=1.0)
        last = ""

        def show(stage: str, done: float) -> None:
            nonlocal last
            progress.update(task, description=stage, completed=done)
            if not err.is_terminal and stage != last:
                err.print(stage, markup=False, highlight=False)
            last = stage

        runtime = Runtime(settings, show)
        try:
            runtime.start()
        except RuntimeFailure as error:
            failure = str(error)
        except (KeyboardInterrupt, SystemExit):
            failure = "interrupted"
    if failure is not None:
        fail(failure)
    try:
        yield runtime
    except KeyboardInterrupt:
        pass
    except (RuntimeFailure, StoreError, StreamError) as error:
        failure = str(error)
    finally:
        # A second signal exits at once and leaves the rest to the watchdog.
        for number in numbers:
            signal.signal(number, lambda *_: os._exit(130))
        with progress_bar() as progress:
            progress.add_task("stopping", total=None)
            runtime.stop()
    if failure is not None:
        fail(failure)


def _print_addresses(runtime: Runtime) -> None:
    for name, address in (
        ("HTTP", f"{runtime.http} (try {runtime.http}/docs)"),
        ("Kafka", runtime.settings.kafka),
        ("Redis", f"password in {runtime.settings.data / 'biobracket.json'}"),
        ("data", str(runtime.settings.data.resolve())),
    ):
        out.print(f"{name:<6} {address}", highlight=False, soft_wrap=True)
    out.print("In another shell: biobracket produce FILE, biobracket get ID.", highlight=False, soft_wrap=True)
    out.print("Ctrl-C stops everything.")


def _watch(runtime: Runtime) -> None:
    """Show the counts until interrupted: in place on a terminal, else a line whenever they change."""
    from rich.live import Live

    from services.cli.rendering import counts_table

    if out.is_terminal:
        with Live(console=out, refresh_per_second=4, transient=True) as live:
            for counts in _counts(runtime):
                live.update(counts_table(counts))
    else:
        last = ""
        for counts in _counts(runtime):
            if str(counts) != last:
                last = str(counts)
                out.print(last, highlight=False)


def _counts(runtime: Runtime) -> Iterator[LiveCounts]:
    """The counts every two seconds, except while store or broker do not answer."""
    from services.cli.rendering import LiveCounts
    from services.ingest.config import IngestConfig
    from shared.backends.result_store import ResultStore
    from shared.backends.streams.scan import Lag
    from shared.errors import StoreError, StreamError

    settings = runtime.settings
    store = ResultStore.from_settings(settings)
    lag = Lag(settings, IngestConfig().group, settings.topic_documents)
    before, then, rate = None, time.monotonic(), 0.0
    while True:
        runtime.check()
        try:
            counts, now = store.counts(), time.monotonic()
            if before is not None:
                rate = max(0, counts["documents"] - before) / (now - then)
            before, then = counts["documents"], now
            yield LiveCounts(counts["documents"], counts["entities"], lag.read(), rate)
        except (StoreError, StreamError) as error:
            warn(str(error))
        time.sleep(_TICK_S)


# -- the demonstration -------------------------------------------------------------------------------------------------


def _notes(file: Path) -> list[Document]:
    from services.ingest.admission import admit

    documents: dict[str, Document] = {}
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                document = admit(line)
                if document.id in documents:
                    fail(f"notes: line {number} of {file} repeats an earlier id; give each note its own")
                documents[document.id] = document
    except DocumentError as error:
        fail(f"notes: line {number} of {file}: {error}")
    except OSError as error:
        fail(f"notes: cannot read {file} ({error.strerror}); name another file with --notes")
    if not documents:
        fail(f"notes: {file} holds no documents; write one JSON object per line")
    return list(documents.values())


def _stream(runtime: Runtime, documents: Sequence[Document]) -> bool:
    """Send the documents, wait for each on Kafka, print it from Redis. True if all came out, with right offsets."""
    from services.cli.rendering import note, summary
    from shared.backends.result_store import ResultStore
    from shared.backends.streams.sink import Sink
    from shared.backends.streams.source import Source
    from shared.messages import check_offsets

    settings = runtime.settings
    source = Source(
        settings,
        f"biobracket-demo-{secrets.token_hex(8)}",
        [settings.topic_entities, settings.topic_dead_letters],
    )
    sink = Sink(settings)
    store = ResultStore.from_settings(settings)
    started = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task("streaming the notes through Kafka", total=len(documents))
        waiting = {document.id.encode() for document in documents}
        dead: set[bytes] = set()
        for document in documents:
            sink.send(settings.topic_documents, document.id.encode(), document.model_dump_json().encode())
        sink.flush()
        while waiting:
            runtime.check()
            for record in source.poll(0.5, 100):
                if record.key in waiting:
                    waiting.remove(record.key)
                    if record.topic == settings.topic_dead_letters:
                        dead.add(record.key)
            progress.update(task, completed=len(documents) - len(waiting))
    seconds = time.perf_counter() - started
    extractions: list[Extraction] = []
    wrong = 0
    for document in documents:
        extraction = store.get(document.id)
        if document.id.encode() in dead or extraction is None:
            warn(f"{document.id}: no result; see {settings.topic_dead_letters} for the reason")
            continue
        wrong += sum(not check_offsets(document.text, entity) for entity in extraction.entities)
        extractions.append(extraction)
        out.print(note(document.text, extraction), highlight=False)
    out.print(summary(extractions, seconds))
    if wrong:
        warn(f"{wrong} entities do not match their offsets; this is a bug in biobracket")
    for client in (source, sink, store):
        client.close()
    return wrong == 0 and len(extractions) == len(documents)


# -- files -------------------------------------------------------------------------------------------------------------


def _check_readable(files: Iterable[str]) -> None:
    from services.cli.document_files import unreadable

    for file in files:
        if (said := unreadable(file)) is not None:
            fail(said)
