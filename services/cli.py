"""The ``biobracket`` command."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
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
from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings
from rich.console import Console

import services
from services import corpus_commands, index_commands, model_commands
from shared.errors import DocumentError
from shared.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress

    from services.rendering import LiveCounts
    from services.runtime import Runtime
    from shared.messages import Document, Extraction

cli = typer.Typer(
    name="biobracket",
    help="Streaming, bilingual (Chinese and English), nested biomedical named-entity recognition.",
    no_args_is_help=True,
    add_completion=False,
    # Local variables hold clinical text.
    pretty_exceptions_enable=False,
)

cli.add_typer(model_commands.train, name="train")
cli.add_typer(index_commands.index, name="index")
cli.command()(model_commands.evaluate)
cli.command()(model_commands.candidates)
cli.command()(corpus_commands.convert)

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the embedded servers' files; BIOBRACKET_DATA else.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port of the HTTP interface; BIOBRACKET_HTTP_PORT else.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_NOTES = Path(__file__).resolve().parent.parent / "examples" / "notes.jsonl"
_TICK_S = 2.0
# Far above what a broker acknowledges at once, and little memory.
_UNACKNOWLEDGED = 1000
_SECRET_NAMES = ("password", "secret", "token", "keyfile", "key_password")
_MASK = "********"

out = Console()
err = Console(stderr=True)


def main() -> None:
    """Entry point of the command."""
    cli()


@cli.command()
def up(data: DataOption = None, port: PortOption = None) -> None:
    """Start broker, store and services on this machine, and show live counts until Ctrl-C."""
    settings = _settings(data, port)
    with _started(settings) as runtime:
        _print_addresses(runtime)
        _watch(runtime)


@cli.command()
def demo(
    notes: Annotated[Path, typer.Option("--notes", help="Documents to stream, one JSON object a line.")] = _NOTES,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything up afterwards, until Ctrl-C.")] = False,
    data: DataOption = None,
    port: PortOption = None,
) -> None:
    """Start everything, stream the sample notes through Kafka, and show their entities from Redis."""
    documents = _notes(notes)
    settings = _settings(data, port)
    with _started(settings) as runtime:
        complete = _stream(runtime, documents)
        if keep:
            _print_addresses(runtime)
            _watch(runtime)
    if not complete:
        raise typer.Exit(1)


@cli.command()
def produce(
    files: Annotated[
        list[str],
        typer.Argument(help="*.txt: one document each. Else one JSON document a line; - is standard input."),
    ],
    data: DataOption = None,
) -> None:
    """Send documents to Kafka.

    Lines are sent as they are. What is not a valid document is told here, and will be in the dead-letters topic.
    """
    from shared.streams import Sink, StreamError

    settings = _attached(data)
    total = invalid = failed = 0
    waiting: list[Future[None]] = []

    def settle(all_of_them: bool) -> int:
        lost = 0
        while waiting and (all_of_them or len(waiting) >= _UNACKNOWLEDGED):
            try:
                waiting.pop(0).result()
            except StreamError as error:
                lost += 1
                if lost == 1:
                    _warn(str(error))
        return lost

    _check_readable(files)
    try:
        sink = Sink(settings)
        with _progress() as progress:
            for place, key, value, problem in _records(files, progress):
                total += 1
                if problem is not None:
                    _warn(f"{place}: {problem}")
                if value is None:
                    failed += 1
                    continue
                invalid += problem is not None
                waiting.append(sink.send(settings.topic_documents, key, value))
                failed += settle(False)
            failed += settle(True)
        sink.close()
    except StreamError as error:
        _fail(str(error))
    out.print(f"sent {total - failed} of {total} documents to {settings.topic_documents}", highlight=False)
    if invalid:
        out.print(f"{invalid} of them are not valid and will be in {settings.topic_dead_letters}", highlight=False)
    if failed:
        raise typer.Exit(1)


@cli.command()
def get(
    document_id: Annotated[str, typer.Argument(metavar="ID", help="Identifier of the document.")],
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Show the entities of a document that came in through Kafka."""
    from services.rendering import entities_table
    from shared.store import ResultStore, StoreError

    try:
        store = ResultStore.from_settings(_attached(data))
        extraction = store.get(document_id)
        store.close()
    except StoreError as error:
        _fail(str(error))
    if extraction is None:
        _fail(
            "id: no result is stored for this document; check the identifier; a document sent just now takes a moment, "
            "and one that cannot be processed is in the dead-letters topic"
        )
    if as_json:
        sys.stdout.write(extraction.model_dump_json(indent=2) + "\n")
    else:
        out.print(entities_table(extraction) if extraction.entities else "(no entity)")


@cli.command()
def extract(
    file: Annotated[str, typer.Argument(help="A text file; - is standard input.")],
    lang: Annotated[str | None, typer.Option("--lang", help="zh or en; detected when absent.")] = None,
    types: Annotated[
        str | None, typer.Option("--types", help="Entity type keys, comma separated; the language's own when absent.")
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Show the entities of one text, over HTTP; nothing is stored."""
    import httpx

    from services.rendering import note
    from shared.messages import Extraction

    settings = _attached(data)
    _check_readable([file])
    try:
        text = _text(_read(file))
    except DocumentError as error:
        _fail(str(error))
    body: dict[str, Any] = {"text": text}
    if file != "-" and Path(file).name:
        body["id"] = Path(file).name
    if lang is not None:
        body["lang"] = lang
    if types is not None:
        body["types"] = [t.strip() for t in types.split(",") if t.strip()]
    address = f"http://{settings.http_host}:{settings.http_port}"
    try:
        with _progress() as progress:
            progress.add_task("extracting", total=None)
            # The server ends what takes too long. `trust_env`: a proxy must not get between, or see the text.
            response = httpx.post(f"{address}/v1/extract", json=body, timeout=None, trust_env=False)  # noqa: S113
    except httpx.HTTPError:
        _fail(
            f"http: nothing answers at {address}; start it with `biobracket up`, or set BIOBRACKET_HTTP_HOST and "
            "BIOBRACKET_HTTP_PORT to where it runs"
        )
    if response.status_code != 200:
        try:
            told = response.json()["error"]
            message = f"{told['field']}: {told['problem']}; {told['remedy']}"
        except (ValueError, KeyError, TypeError):
            message = f"http: status {response.status_code} from {address}; see its log"
        _fail(message)
    if as_json:
        sys.stdout.write(json.dumps(response.json(), ensure_ascii=False, indent=2) + "\n")
    else:
        out.print(note(text, Extraction.model_validate_json(response.content)))


@cli.command()
def status(data: DataOption = None) -> None:
    """Show documents, entities and lag."""
    from services.ingest.config import IngestConfig
    from services.rendering import LiveCounts
    from shared.store import ResultStore, StoreError
    from shared.streams import Lag, StreamError

    settings = _attached(data)
    try:
        store = ResultStore.from_settings(settings)
        counts = store.counts()
        store.close()
        reader = Lag(settings, IngestConfig().group, settings.topic_documents)
        lag = reader.read()
        reader.close()
    except (StoreError, StreamError) as error:
        _fail(str(error))
    out.print(str(LiveCounts(counts["documents"], counts["entities"], lag)), highlight=False)


@cli.command()
def audit(
    since: Annotated[
        str | None, typer.Option("--since", help="From this time on: 2025-11-26T08:00 (UTC), or 90m, 12h, 7d ago.")
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", help="Topic of documents; BIOBRACKET_TOPIC_DOCUMENTS else.")
    ] = None,
    resend: Annotated[
        bool, typer.Option("--resend", help="Send what is missing to the end of the topic again.")
    ] = False,
    data: DataOption = None,
) -> None:
    """Check that every document that was committed has a result or is in the dead letters; exit status 1 else."""
    from services.audit import Audit, since_ms
    from services.ingest.config import IngestConfig
    from shared.store import StoreError
    from shared.streams import StreamError

    settings = _attached(data)
    topic = topic or settings.topic_documents
    try:
        start = 0 if since is None else since_ms(since, time.time())
    except ValueError as error:
        _fail(str(error))
    group = IngestConfig().group
    try:
        with Audit(settings, group, topic, since_ms=start) as found:
            with _progress() as progress:
                task = progress.add_task("reading", total=None)
                counts = found.run(
                    resend=resend,
                    report=lambda what, read, total: progress.update(
                        task, description=what, completed=read, total=total
                    ),
                )
            for (name, partition), offset in found.missing():
                out.print(f"missing: {name}, partition {partition}, offset {offset}", highlight=False, soft_wrap=True)
    except (StoreError, StreamError) as error:
        _fail(str(error))
    out.print(f"{topic}, as far as group {group} has committed it: {counts}", highlight=False, soft_wrap=True)
    if counts.missing:
        raise typer.Exit(1)


@cli.command(name="settings")
def show_settings() -> None:
    """List every setting: environment variable, value in force, meaning."""
    from services.rendering import setting

    for config in _configs():
        for row in _rows(config):
            out.print(setting(*row))


# -- settings ----------------------------------------------------------------------------------------------------------


def _settings(data: Path | None, port: int | None = None) -> Settings:
    given: dict[str, Any] = {"data": data, "http_port": port}
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0])
        _fail(f"{name}: {first['msg'].lower()}; set BIOBRACKET_{name.upper()} as `biobracket settings` tells")


def _attached(data: Path | None) -> Settings:
    from services.runtime import attached

    return attached(_settings(data))


def _configs() -> Iterator[BaseSettings]:
    """The shared settings, then those of each service that has some."""
    yield _settings(None)
    for module in sorted(m.name for m in pkgutil.iter_modules(services.__path__) if m.ispkg):
        config = importlib.import_module(f"services.{module}.config")
        for value in vars(config).values():
            if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == config.__name__:
                yield value()


def _rows(config: BaseSettings) -> Iterator[tuple[str, str, str]]:
    prefix = config.model_config["env_prefix"]
    for name, field in type(config).model_fields.items():
        yield f"{prefix}{name}".upper(), _shown(getattr(config, name)), field.description or ""


def _shown(value: object) -> str:
    """A value without what is secret in it."""
    if isinstance(value, SecretStr):
        return _MASK
    if isinstance(value, dict):
        masked = {k: _MASK if any(s in k.lower() for s in _SECRET_NAMES) else v for k, v in value.items()}
        return json.dumps(masked)
    return "" if value is None else str(value)


# -- the embedded runtime ----------------------------------------------------------------------------------------------


@contextmanager
def _started(settings: Settings) -> Iterator[Runtime]:
    """A running runtime. It stops on Ctrl-C, SIGTERM and SIGHUP, which end the program quietly."""
    with _ray_silenced():
        yield from _run(settings)


@contextmanager
def _ray_silenced() -> Iterator[None]:
    """Ray prints errors of other processes to ``sys.stdout``, whatever its logging is set to; theirs may hold text."""
    out.file = sys.stdout
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        out.file = None  # type: ignore[assignment]  # follows sys.stdout again


def _run(settings: Settings) -> Iterator[Runtime]:
    from services.runtime import Runtime, RuntimeFailure
    from shared.store import StoreError
    from shared.streams import StreamError

    def interrupt(number: int, _: object) -> NoReturn:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, interrupt)
    failure: str | None = None
    with _progress() as progress:
        task = progress.add_task("starting", total=1.0)
        said = ""

        def report(what: str, done: float) -> None:
            nonlocal said
            progress.update(task, description=what, completed=done)
            if not err.is_terminal and what != said:
                err.print(what, markup=False, highlight=False)
            said = what

        runtime = Runtime(settings, report)
        try:
            runtime.start()
        except RuntimeFailure as error:
            failure = str(error)
        except (KeyboardInterrupt, SystemExit):
            failure = "interrupted"
    if failure is not None:
        _fail(failure)
    try:
        yield runtime
    except KeyboardInterrupt:
        pass
    except (RuntimeFailure, StoreError, StreamError) as error:
        failure = str(error)
    finally:
        # Once more means at once; the watchdog then does what is left.
        for number in numbers:
            signal.signal(number, lambda *_: os._exit(130))
        with _progress() as progress:
            progress.add_task("stopping", total=None)
            runtime.stop()
    if failure is not None:
        _fail(failure)


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
    """Shows the counts until an interrupt: in place on a terminal, else a line whenever they change."""
    from rich.live import Live

    from services.rendering import counts_table

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
    """The counts, every other second. They stand still while store or broker do not answer."""
    from services.ingest.config import IngestConfig
    from services.rendering import LiveCounts
    from shared.store import ResultStore, StoreError
    from shared.streams import Lag, StreamError

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
            _warn(str(error))
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
                    _fail(f"notes: line {number} of {file} has an id that came before; give each note its own")
                documents[document.id] = document
    except DocumentError as error:
        _fail(f"notes: line {number} of {file}: {error}")
    except OSError as error:
        _fail(f"notes: cannot read {file} ({error.strerror}); name another file with --notes")
    if not documents:
        _fail(f"notes: {file} holds no document; write one JSON object a line")
    return list(documents.values())


def _stream(runtime: Runtime, documents: Sequence[Document]) -> bool:
    """Sends the documents, waits for each on Kafka, and prints it from Redis. Whether all came out, and right."""
    from services.rendering import note, summary
    from shared.messages import check_offsets
    from shared.store import ResultStore
    from shared.streams import Sink, Source

    settings = runtime.settings
    source = Source(
        settings,
        f"biobracket-demo-{secrets.token_hex(8)}",
        [settings.topic_entities, settings.topic_dead_letters],
    )
    sink = Sink(settings)
    store = ResultStore.from_settings(settings)
    started = time.perf_counter()
    with _progress() as progress:
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
            _warn(f"{document.id}: has no result; see {settings.topic_dead_letters} for the reason")
            continue
        wrong += sum(not check_offsets(document.text, entity) for entity in extraction.entities)
        extractions.append(extraction)
        out.print(note(document.text, extraction), highlight=False)
    out.print(summary(extractions, seconds))
    if wrong:
        _warn(f"{wrong} entities do not stand where their offsets say; this is a bug of biobracket")
    for client in (source, sink, store):
        client.close()
    return wrong == 0 and len(extractions) == len(documents)


# -- files -------------------------------------------------------------------------------------------------------------


def _check_readable(files: Iterable[str]) -> None:
    for file in files:
        if file != "-" and not (Path(file).is_file() and os.access(file, os.R_OK)):
            _fail(f"file: cannot read {file}; name a file that is there, or - for standard input")


def _read(file: str) -> bytes:
    return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DocumentError("text", "is not UTF-8", "convert the file, e.g. iconv -f gb18030 -t utf-8") from None


def _records(files: Iterable[str], progress: Progress) -> Iterator[tuple[str, bytes | None, bytes | None, str | None]]:
    """Where it stands, key, value, and what is wrong with it, of each record; no value where it cannot be sent."""
    from services.ingest.admission import admit
    from shared.messages import Document

    for file in files:
        size = None if file == "-" else Path(file).stat().st_size
        task = progress.add_task("standard input" if file == "-" else Path(file).name, total=size)
        if file.endswith(".txt"):
            try:
                document = Document(id=Path(file).name, text=_text(_read(file)))
                yield file, document.id.encode(), document.model_dump_json().encode(), None
            except DocumentError as error:
                yield file, None, None, str(error)
            except ValidationError:
                yield file, None, None, "id: the file's name is too long or not Unicode; rename it"
            progress.update(task, completed=size)
            continue
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                value = line.removesuffix(b"\n").removesuffix(b"\r")
                if value:
                    place = f"{'standard input' if file == '-' else file}, line {number}"
                    try:
                        yield place, admit(value).id.encode(), value, None
                    except DocumentError as error:
                        yield place, None, value, str(error)
                progress.advance(task, len(line))


# -- messages ----------------------------------------------------------------------------------------------------------


def _progress() -> Progress:
    """A progress bar on standard error, which leaves nothing behind."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _warn(message: str) -> None:
    err.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)
