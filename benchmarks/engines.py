"""The engines side by side: the same weights and segments, greedily, each in a process of its own.

    BIOBRACKET_CORPORA=… make engines ARGS='--segments 400'

| engine | what it does |
|---|---|
| paper | transformers `generate`, one line after the other, as the paper has it (arXiv 2510.08902) but greedy |
| transformers | the same, 16 lines at once |
| vllm | the `vllm` engine, no candidates beyond greedy |
| vllm_candidates | the `vllm` engine as it is, with the candidates beyond greedy |
| vllm_speculative | the same, with guesses from the prompt's n-grams; unconstrained, as vLLM wants it |
| copy_sequential | the `copy` engine, an action at a time |
| copy_greedy | the `copy` engine, no candidates beyond greedy |
| copy | the `copy` engine as it is, with the candidates beyond greedy |
| encoder | a span classifier over DeBERTa-v3-base, as GLiNER medium, with random weights: what reading once costs |

The weights were trained to choose among the admissible tokens and nothing else, so all engines are constrained to these
where they can be; left free, the weights say other words than the text's.

Segments are the first of GENIA's, CMeEE-V2's and BC5CDR's ``test`` by turns; slow engines get a prefix of the list, and
F1 of `copy` on the same prefix stands beside theirs. An engine that is not installed is left out. The floor is what the
products of one pass over every needed token take at the rate that this machine multiplies.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.generate import Generate, script_of
from benchmarks.hardware import hardware, make_command
from benchmarks.stream import requests_of
from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from services.parsing.brackets import parse_lines
from shared.messages import TaggedLine
from shared.model.revision import generator_revision
from shared.runtime.cpus import cpus
from shared.settings import Settings
from shared.text import grammar
from shared.text.grammar import CopyTokens
from shared.text.pieces import Pieces, split, to_piece_spans
from training.data.corpora import corpus_folder, documents_of, read

CORPORA = ("genia", "cmeee_v2", "bc5cdr")
# Segments at most: the slow engines get the first of the list.
MOST = {
    "paper": 6,
    "transformers": 15,
    "vllm": 200,
    "vllm_candidates": 60,
    "vllm_speculative": 12,  # free running, many lines go on until they are cut off
    "copy_sequential": 90,
    "copy_greedy": 100_000,
    "copy": 100_000,
    "encoder": 100_000,
}
_NOTHING = ("encoder",)  # finds nothing, so there is nothing to compare but the time
_GREEDY = ("vllm", "vllm_speculative", "copy_greedy")  # without candidates beyond the greedy ones
_TOGETHER = 16
_BASELINES = ("paper", "vllm", "vllm_candidates", "encoder")
_WARM_UP = 3  # segments, one of each corpus

Span = tuple[int, int, int, str]  # segment, start, end, type
Tag = Callable[[Sequence[TagRequest]], list[TaggedLine]]

out = Console()
err = Console(stderr=True)


def main(
    segments: Annotated[int, typer.Option(min=1, help="How many segments; slow engines get fewer.")] = 400,
    repetitions: Annotated[int, typer.Option(min=1, help="How often each engine is measured.")] = 2,
    engines: Annotated[str, typer.Option(help="Which, separated by commas; all that are installed by default.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw the rates into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, on one line.")] = False,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
    into: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the engines against one another."""
    if worker and into:
        into.write_text(json.dumps(measured(worker, segments, repetitions)), encoding="utf-8")
        return
    wanted = engines.split(",") if engines else list(MOST)
    if unknown := set(wanted) - set(MOST):
        raise typer.BadParameter(f"engines: {', '.join(sorted(unknown))}: the known ones are {', '.join(MOST)}")
    settings = Settings()
    if importlib.util.find_spec("vllm") is None and (others := [name for name in wanted if name.startswith("vllm")]):
        err.print(f"{', '.join(others)}: left out, vllm is not installed; `make vllm` installs it", highlight=False)
        wanted = [name for name in wanted if name not in others]
    if not wanted:
        raise typer.BadParameter("engines: none of them can run here; name `copy` beside them")
    found = {name: run_alone(name, min(segments, MOST[name]), repetitions) for name in wanted}
    report = {
        "command": make_command("engines"),
        "hardware": hardware(),
        "generator_revision": generator_revision(settings),
        "engines": {name: summary(name, found) for name in found},
    }
    if plot is not None:
        draw(report, plot)
    if as_json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        show(report)


def run_alone(name: str, segments: int, repetitions: int) -> dict[str, Any]:
    """What an engine does in a process of its own, so that memory and threads are its own too."""
    err.print(f"{name}: {segments} segments", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "measured.json"  # not its standard output, to which libraries and their processes write
        command = [sys.executable, "-m", "benchmarks.engines", "--worker", name, "--into", str(into)]
        command += ["--segments", str(segments), "--repetitions", str(repetitions)]
        subprocess.run(command, stdout=sys.stderr, check=True)  # noqa: S603  # our own module
        result: dict[str, Any] = json.loads(into.read_bytes())
    err.print(f"{name}: {', '.join(f'{seconds:.1f} s' for seconds in result['seconds'])}", highlight=False)
    return result


def measured(name: str, segments: int, repetitions: int) -> dict[str, Any]:
    """In the engine's process: seconds of each repetition after a small one, what it found, and its memory."""
    settings = Settings()
    requests, gold = texts(settings, segments)
    tag, close = engine(name, settings)
    tag(requests[: 1 if name == "paper" else _WARM_UP])
    seconds = []
    lines: list[TaggedLine] = []
    for _ in range(repetitions):
        start = time.perf_counter()
        lines = tag(requests)
        seconds.append(time.perf_counter() - start)
    found = sorted(spans(lines))
    close()
    # Of this process and of those that it started, which have ended.
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "segments": len(requests),
        "characters": sum(len(request.segment.text) for request in requests),
        "seconds": seconds,
        "peak_mib": peak // 1024,
        "found": found,
        "gold": gold,
        "floor": floor(settings, requests, lines) if name == "copy" else None,
    }


def texts(settings: Settings, segments: int) -> tuple[list[TagRequest], list[Span]]:
    """The segments, by turns of the corpora, and their gold mentions."""
    parts: list[list[tuple[TagRequest, list[tuple[int, int, str]]]]] = []
    for name in CORPORA:
        examples = read(corpus_folder(name, settings), "test")[:segments]
        by_id = {str(i): example for i, example in enumerate(examples)}
        parts.append([])
        for request in requests_of(documents_of(examples)):
            begin, end = request.segment.start, request.segment.end
            mentions = by_id[request.segment.document_id].mentions
            inside = [(m.start - begin, m.end - begin, m.type) for m in mentions if begin <= m.start < m.end <= end]
            parts[-1].append((request, inside))
    turns = [each for each in chain.from_iterable(zip_longest(*parts)) if each is not None][:segments]
    gold = [(i, *mention) for i, (_, inside) in enumerate(turns) for mention in inside]
    return [request for request, _ in turns], gold


def spans(lines: Sequence[TaggedLine]) -> Iterator[Span]:
    """The greedy mentions of each segment."""
    for i, line in enumerate(lines):
        for c in parse_lines((line,)).candidates:
            if c.greedy:
                yield i, c.start - c.segment.start, c.end - c.segment.start, c.type


def engine(name: str, settings: Settings) -> tuple[Tag, Callable[[], None]]:
    """An engine's `tag`, and what ends it."""
    config = GenerationConfig()
    if name in _GREEDY:
        config = config.model_copy(update={"candidate_floor": 1.0})
    if name.startswith("vllm"):
        from services.generation.vllm import VllmEngine, merged_folder

        speculate = 8 if name == "vllm_speculative" else 0
        config = config.model_copy(update={"speculate": speculate})
        served = VllmEngine(merged_folder(settings), config)
        return served.tag, served.close
    if name.startswith("copy"):
        from services.generation.engines import load

        config = config.model_copy(update={"engine": "copy"})
        if name == "copy_sequential":
            config = config.model_copy(update={"lookahead": 1})
        return load(settings, config).tag, lambda: None
    if name == "encoder":
        from benchmarks.encoder import Encoder, configuration
        from shared.model.base_model import load_tokenizer
        from shared.model.products import fastest_float

        torch.set_num_threads(cpus())
        dtype = getattr(torch, fastest_float(settings.cache))
        return Encoder(load_tokenizer(settings), configuration(), dtype).tag, lambda: None
    return Generate(settings, 1 if name == "paper" else _TOGETHER).tag, lambda: None


def floor(settings: Settings, requests: Sequence[TagRequest], lines: Sequence[TaggedLine]) -> dict[str, Any]:
    """Seconds that one pass over every needed token takes if the machine only multiplies, on all of its cores."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from shared.model.base_model import base_folder, load_tokenizer

    # Here: vLLM's processes import this module, and do not start with what it loads.
    from shared.model.products import fastest_float

    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_folder(settings))).get_decoder()
    layers = [layer for layer in body.modules() if isinstance(layer, torch.nn.Linear)]
    per_token = 2 * sum(layer.weight.numel() for layer in layers)
    needed = _needed(load_tokenizer(settings), requests, lines)
    rates = {
        kind: rate(kind, [(layer.in_features, layer.out_features) for layer in layers[:7]], settings.cache)
        for kind in (fastest_float(settings.cache), "int8")
    }
    best = max(rates.values())
    return {
        "tokens": needed,
        "gflop_per_token": per_token / 1e9,
        "gflop_per_s": rates,
        "seconds": needed * per_token / best / 1e9,
    }


def _needed(tokenizer: Any, requests: Sequence[TagRequest], lines: Sequence[TaggedLine]) -> int:
    """Of each segment and its line up to the last action, and once of each set of types."""
    tokens = CopyTokens(tokenizer)
    headers: set[tuple[int, ...]] = set()
    needed = 0
    for request, line in zip(requests, lines, strict=True):
        script = script_of(tokens, request)
        headers.add(script.labels.header)
        ranges = _ranges(split(request.segment.text), line)
        *actions, _ = grammar.actions_of(len(script.pieces), ranges, script.labels)
        needed += len(script.pieces.text) + sum(1 for _ in script.said(actions))
    return needed + sum(map(len, headers))


def _ranges(pieces: Pieces, line: TaggedLine) -> list[tuple[int, int, str]]:
    """The greedy mentions by their pieces."""
    return [
        (first, last, type_)
        for _, start, end, type_ in spans((line,))
        for first, last in to_piece_spans(pieces, [(start, end)])
    ]


def rate(kind: str, shapes: Sequence[tuple[int, int]], cache: Path, tokens: int = 512) -> float:
    """GFLOP/s of products of the layers' shapes, a thread a core, each at its own: how the engine works."""
    from shared.model.products import fastest_int8

    cores, int8 = cpus(), fastest_int8(cache)
    made: list[Callable[[], object]] = []
    for inner, outer in shapes:
        one, other = torch.ones(tokens, inner), torch.ones(inner, outer)
        if kind == "int8":
            packed, out = int8.packed(other.to(torch.int8)), torch.empty(tokens, outer, dtype=int8.dtype)
            made.append(partial(int8.linear, one.to(torch.int8), packed, out))
        else:
            dtype = getattr(torch, kind)
            made.append(partial(torch.mm, one.to(dtype), other.to(dtype)))

    def work(times: int) -> None:
        torch.set_num_threads(1)
        for _ in range(times):
            for product in made:
                product()

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, [3] * cores))
        start = time.perf_counter()
        list(pool.map(work, [20] * cores))
        seconds = time.perf_counter() - start
    return round(cores * 20 * sum(2 * tokens * i * o for i, o in shapes) / seconds / 1e9, 1)


def f1(found: Sequence[Span], gold: Sequence[Span], segments: int) -> float:
    """Strict micro F1 on the first segments."""
    said, right = ({tuple(s) for s in spans_ if s[0] < segments} for spans_ in (found, gold))
    hits = len(said & right)
    return round(2 * hits / max(1, len(said) + len(right)), 4)


def summary(name: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is reported of an engine; ratios are of the median rates, copy's F1 is on the same segments."""
    own = found[name]
    rates = sorted(own["segments"] / s for s in own["seconds"])
    per_segment = statistics.median(own["seconds"]) / own["segments"]
    made: dict[str, Any] = {
        "segments": own["segments"],
        "segments_per_second": float(f"{statistics.median(rates):.4g}"),
        "slowest": float(f"{rates[0]:.4g}"),
        "fastest": float(f"{rates[-1]:.4g}"),
        "characters_per_second": round(own["characters"] / own["segments"] / per_segment, 1),
        "entities_per_second": round(len(own["found"]) / own["segments"] / per_segment, 2),
        "peak_mib": own["peak_mib"],
    }
    if name not in _NOTHING:
        made["f1"] = f1(own["found"], own["gold"], own["segments"])
    if "copy" in found and name not in _NOTHING:
        theirs = found["copy"]
        made["f1_of_copy"] = f1(theirs["found"], own["gold"], own["segments"])
        same = {tuple(s) for s in own["found"]} & {tuple(s) for s in theirs["found"] if s[0] < own["segments"]}
        made["entities_as_copy"] = round(len(same) / max(1, len(own["found"])), 4)
    for other in _BASELINES:
        if other in found:
            base = found[other]
            made[f"times_{other}"] = float(f"{statistics.median(base['seconds']) / base['segments'] / per_segment:.3g}")
    if own["floor"]:
        made["floor"] = own["floor"] | {
            "reached": round(own["floor"]["seconds"] / statistics.median(own["seconds"]), 3)
        }
    return made


def draw(report: dict[str, Any], file: Path) -> None:
    """Segments a second of each engine, as bars on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(report["engines"])
    rates = [report["engines"][name]["segments_per_second"] for name in names]
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    axes.barh(names[::-1], rates[::-1], log=True)
    axes.set_xlabel("segments a second")
    for i, value in enumerate(rates[::-1]):
        axes.text(value, i, f" {value:g}", va="center")
    axes.margins(x=0.15)
    figure.savefig(file, dpi=120)


def show(report: dict[str, Any]) -> None:
    """The report as Markdown, for benchmarks/RESULTS.md."""
    machine = report["hardware"]
    out.print(
        f"`{report['command']}`, generator revision {report['generator_revision']}", highlight=False, soft_wrap=True
    )
    out.print(
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, GPU: {machine['gpu'] or 'none'}\n",
        highlight=False,
        soft_wrap=True,
    )
    columns = ("segments", "segments_per_second", "slowest", "fastest", "characters_per_second", "entities_per_second")
    columns += ("peak_mib", "f1", "f1_of_copy", "entities_as_copy", *(f"times_{name}" for name in _BASELINES))
    out.print("| engine | " + " | ".join(name.replace("_", " ") for name in columns) + " |", soft_wrap=True)
    out.print("|---" * (len(columns) + 1) + "|", soft_wrap=True)
    for name, row in report["engines"].items():
        cells = " | ".join(str(row.get(column, "")) for column in columns)
        out.print(f"| {name} | {cells} |", highlight=False, soft_wrap=True)
    if lowest := report["engines"].get("copy", {}).get("floor"):
        out.print(
            f"\nFloor of `copy`: {lowest['tokens']} tokens of {lowest['gflop_per_token']:.3f} GFLOP in "
            f"{lowest['seconds']:.1f} s, at GFLOP/s {lowest['gflop_per_s']}; {lowest['reached']:.0%} of it reached.",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    typer.run(main)
