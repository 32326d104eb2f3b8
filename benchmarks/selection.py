"""What selection costs relative to generation on the same segments, and what FAISS costs as exemplars grow in number.

    BIOBRACKET_CORPORA=… make selection ARGS='--documents 40 --exemplars 10000,100000,1000000'

The first table is from one run: the generator tags the segments and their candidates are decided, alternately and each
alone in this process. The second measures the index as served (`shared.selection.exemplars`): each kind is built,
mapped and searched for ten neighbours, with recall relative to exact search of the same vectors. Exemplars are
scattered around the embeddings of the run's candidates, since nobody has labelled a million.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.hardware import hardware, make_command
from benchmarks.stream import read_documents, requests_of
from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from services.generation.engines import load
from services.parsing.brackets import parse_lines
from services.selection.selector import Selector
from shared.messages import Candidate
from shared.runtime.cpus import cpus
from shared.selection.calibration import Calibration
from shared.selection.exemplars.format import Exemplar, Floats, Kind
from shared.selection.exemplars.index import ExemplarIndex
from shared.selection.selector_folder import model_revision, selector_folder
from shared.selection.span_encoder import SpanEncoder
from shared.settings import Settings

NEIGHBOURS = 10
_QUERIES = 1000
_BATCH = 64  # candidates of a type searched in one call when documents are batched
_BLOCK = 50_000
_SPREAD = 0.5  # norm of the noise added to an embedding, which has norm 1

out = Console()
err = Console(stderr=True)


def main(
    documents: Annotated[int, typer.Option(min=1, help="How many documents; the sample notes are fewer.")] = 40,
    repetitions: Annotated[int, typer.Option(min=1, help="How often each side is measured.")] = 3,
    exemplars: Annotated[str, typer.Option(help="Sizes of the index, separated by commas.")] = "10000,100000,1000000",
    kinds: Annotated[str, typer.Option(help="Kinds of index, separated by commas.")] = "flat,ivf,hnsw",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure selection against generation, and the index by size and kind."""
    settings = Settings()
    folder = selector_folder(settings)
    if folder is None:
        raise typer.BadParameter("set BIOBRACKET_SELECTOR to the folder of one")
    sizes = [int(size) for size in exemplars.split(",") if size]
    chosen, source = read_documents(settings.corpora / "stream" if settings.corpora else None, documents)
    requests = requests_of(chosen)
    generation, selection, candidates = measure(settings, requests, repetitions)
    report: dict[str, Any] = {
        "command": make_command("selection"),
        "hardware": hardware(),
        "model_revision": model_revision(settings),
        "input": {"source": source, "segments": len(requests), "candidates": len(candidates)},
        "generation_s": [round(s, 2) for s in generation],
        "selection_s": [round(s, 2) for s in selection],
        "candidates_per_s": round(len(candidates) / statistics.median(selection), 1),
        "ratio": float(f"{statistics.median(selection) / statistics.median(generation):.3g}"),
        "index": [],
    }
    if sizes:
        embeddings = SpanEncoder.load(settings, folder).encode(candidates).embeddings
        found = embeddings[np.linalg.norm(embeddings, axis=1) > 0.5]
        if not len(found):
            raise SystemExit("no candidate is of a type that the selector knows; raise --documents")
        for size in sizes:
            report["index"] += measure_index(found, size, kinds.split(","))
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        show(report)


def measure(
    settings: Settings, requests: Sequence[TagRequest], repetitions: int
) -> tuple[list[float], list[float], list[Candidate]]:
    """Seconds of each repetition of generation and of selection, after a warm-up; and the candidates."""
    config = GenerationConfig()
    torch.set_num_threads(config.threads or cpus())  # both compute in this process, one after the other
    engine = load(settings, config)
    selector = Selector.load(settings, Calibration.default())
    selector.select([parse_lines(engine.tag(requests[:8])).candidates])
    generation, selection = [], []
    for number in range(repetitions):
        err.print(f"repetition {number + 1}", highlight=False)
        start = time.perf_counter()
        tagged = engine.tag(requests)
        generation.append(time.perf_counter() - start)
        parsed = [parse_lines((line,)).candidates for line in tagged]
        start = time.perf_counter()
        selector.select(parsed)
        selection.append(time.perf_counter() - start)
    return generation, selection, [candidate for candidates in parsed for candidate in candidates]


def measure_index(found: Floats, size: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Each kind of index over so many exemplars around ``found`` (n, dim): seconds, queries/s, recall, bytes."""
    queries = next(_around(found, _QUERIES, seed=1))
    rows: list[dict[str, Any]] = []
    exact: np.ndarray[Any, Any] | None = None
    for kind in ["flat", *(kind for kind in kinds if kind != "flat")]:
        err.print(f"{kind}: {size} exemplars", highlight=False)
        with tempfile.TemporaryDirectory(prefix="biobracket-index-") as temporary:
            folder = Path(temporary) / "index"
            start = time.perf_counter()
            ExemplarIndex.build(
                folder, _exemplars(found, size), kind=_kind(kind), encoder="0" * 16, dim=found.shape[1], flat_below=0
            )
            built = time.perf_counter() - start
            start = time.perf_counter()
            index = ExemplarIndex.load(folder, encoder=None)
            loaded = time.perf_counter() - start
            index.search("t", queries[:_BATCH], NEIGHBOURS)
            start = time.perf_counter()
            batches = [
                index.search("t", queries[at : at + _BATCH], NEIGHBOURS).positions
                for at in range(0, len(queries), _BATCH)
            ]
            searched = time.perf_counter() - start
            positions = np.concatenate(batches)
            exact = positions if exact is None else exact
            hits = sum(len(set(a) & set(b)) for a, b in zip(positions.tolist(), exact.tolist(), strict=True))
            rows.append(
                {
                    "exemplars": size,
                    "kind": kind,
                    "build_s": round(built, 1),
                    "load_s": round(loaded, 2),
                    "queries_per_s": round(len(queries) / searched),
                    "recall_at_10": round(hits / exact.size, 4),
                    "mib": round(sum(file.stat().st_size for file in folder.iterdir()) / 2**20),
                }
            )
    return [row for row in rows if row["kind"] in kinds]


def _kind(name: str) -> Kind:
    if name not in ("flat", "ivf", "hnsw"):
        raise typer.BadParameter(f"kinds: `{name}` is not one of flat, ivf, hnsw")
    return name  # type: ignore[return-value]  # checked above


def _exemplars(found: Floats, size: int) -> Iterator[tuple[Floats, list[Exemplar]]]:
    start = 0
    for vectors in _around(found, size, seed=0):
        ids = range(start, start + len(vectors))
        yield vectors, [Exemplar(accepted=n % 2 == 0, id=str(n), type="t") for n in ids]
        start += len(vectors)


def _around(found: Floats, size: int, seed: int) -> Iterator[Floats]:
    """Vectors (size, dim) of norm 1 near those found, block by block."""
    draw = np.random.default_rng(seed)
    for start in range(0, size, _BLOCK):
        count = min(_BLOCK, size - start)
        noise = draw.standard_normal((count, found.shape[1]), dtype=np.float32)
        noise *= _SPREAD / np.linalg.norm(noise, axis=1, keepdims=True)
        vectors = found[draw.integers(0, len(found), count)] + noise
        yield (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def show(report: dict[str, Any]) -> None:
    """The report as Markdown, for benchmarks/RESULTS.md."""
    machine, given = report["hardware"], report["input"]
    lines = [
        f"`{report['command']}`, model revision {report['model_revision']}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, GPU: {machine['gpu'] or 'none'}",
        "",
        f"{given['segments']} segments ({given['source']}), {given['candidates']} candidates: generation "
        f"{statistics.median(report['generation_s'])} s ({min(report['generation_s'])} to "
        f"{max(report['generation_s'])}), selection {statistics.median(report['selection_s'])} s "
        f"({min(report['selection_s'])} to {max(report['selection_s'])}), {report['ratio']:.0%} of generation; "
        f"{report['candidates_per_s']} candidates a second.",
    ]
    if report["index"]:
        lines += [
            "",
            "| exemplars | index | queries a second | recall@10 | built in, s | loaded in, s | MiB |",
            "|---|---|---|---|---|---|---|",
        ]
    lines += [
        f"| {row['exemplars']} | {row['kind']} | {row['queries_per_s']} | {row['recall_at_10']} | {row['build_s']} | "
        f"{row['load_s']} | {row['mib']} |"
        for row in report["index"]
    ]
    out.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    typer.run(main)
