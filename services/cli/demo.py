"""``biobracket demo``: the sample notes through everything."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import DataOption, PortOption, fail, load_settings, out, progress_bar, warn
from services.cli.embedded_runtime import print_addresses, started, watch
from shared.errors import DocumentError

if TYPE_CHECKING:
    from services.embedded.runtime import Runtime
    from shared.messages import Document, Extraction

_NOTES = Path(__file__).resolve().parents[2] / "examples" / "notes.jsonl"


def demo(
    notes: Annotated[Path, typer.Option("--notes", help="Documents to stream, one JSON object per line.")] = _NOTES,
    keep: Annotated[bool, typer.Option("--keep", help="Keep everything running afterwards, until Ctrl-C.")] = False,
    data: DataOption = None,
    port: PortOption = None,
) -> None:
    """Start everything, stream the sample notes through Kafka, and show their entities, read back from Redis."""
    documents = _notes(notes)
    settings = load_settings(data, port)
    with started(settings) as runtime:
        complete = _stream(runtime, documents)
        if keep:
            print_addresses(runtime)
            watch(runtime)
    if not complete:
        raise typer.Exit(1)


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
