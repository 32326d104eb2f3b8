"""What each part of the selector is worth: the same candidates, decided in several ways.

    BIOBRACKET_CORPORA=… BIOBRACKET_SELECTOR=… make selectors ARGS='--dev genia=300,cmeee_v2=150,bc5cdr=50'

The generator's candidates on the first texts of each corpus's ``dev`` and ``test`` are made once and kept in ``--out``.
Each way of deciding is calibrated on those of ``dev``, with thresholds of its own, and scored on those of ``test``:
strict F1 with intervals, differences from the generator's confidence alone, boundary errors, and the expected
calibration error on candidates that no calibration has seen.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.hardware import hardware
from services.extractor import Extractor
from services.pipeline.assembly import merge
from services.selection.overlaps import Scored, keep
from services.selection.selector import Selector
from shared.calibration import Calibration, Judgement
from shared.messages import Candidate, Entity
from shared.settings import Settings
from training.calibration import Observation, expected_calibration_error, fit
from training.corpora import Example, corpus_folder, documents_of, read
from training.evaluation import Scores, score
from training.significance import Difference, Interval, compare, intervals

err = Console(stderr=True)

TEXTS = "genia=300,cmeee_v2=150,bc5cdr=50"
CONFIDENCE = "confidence"
WAYS: dict[str, Callable[[Judgement], Judgement]] = {
    CONFIDENCE: lambda known: known._replace(head=0.0, vote=0.0),
    "head alone": lambda known: known._replace(confidence=0.5, vote=0.0),
    "neighbours alone": lambda known: known._replace(confidence=0.5, head=0.0),
    "confidence and neighbours": lambda known: known._replace(head=0.0),
    "confidence and head": lambda known: known._replace(vote=0.0),
    "all": lambda known: known,
}
GREEDY = "all, greedy candidates only"


@dataclass(frozen=True, slots=True)
class Judged:
    """The candidates of a split's first texts, by text, with what is known of each."""

    examples: list[Example]
    candidates: list[list[tuple[Candidate, Judgement]]]


@dataclass(frozen=True, slots=True)
class Cell:
    """What one way of deciding makes of a corpus."""

    precision: float
    recall: float
    f1: float
    interval: Interval | None
    difference: Difference | None
    boundary: int
    calibration_error: float


def main(
    out: Annotated[Path, typer.Option(help="Folder of the candidates and of the report.")] = Path("runs/selectors"),
    dev: Annotated[str, typer.Option(help="Corpora and the texts of their dev splits to calibrate on.")] = TEXTS,
    test: Annotated[str, typer.Option(help="Corpora and the texts of their test splits that are scored.")] = TEXTS,
) -> None:
    """Make the candidates, decide in every way, and write selectors.md and selectors.json."""
    settings = Settings()
    selector = Selector.load(settings, Calibration.default())
    judged = {
        (name, split): _judged(name, split, limit, settings, selector, out)
        for split, given in (("dev", dev), ("test", test))
        for name, limit in _limits(split, given)
    }
    ways = {name: (change, False) for name, change in WAYS.items()} | {GREEDY: (WAYS["all"], True)}
    table: dict[str, dict[str, Cell]] = {}
    base: dict[str, list[Scores]] = {}
    for way, (change, greedy) in ways.items():
        calibration = _calibrated([j for (_, split), j in judged.items() if split == "dev"], change, greedy)
        table[way] = {}
        for (name, split), found in judged.items():
            if split == "test":
                scores = _scores(found, calibration, change, greedy)
                base.setdefault(name, scores)
                table[way][name] = _cell(found, scores, base[name], calibration, change, greedy)
    report = {
        "command": shlex.join(["make", "selectors", *([f"ARGS={shlex.join(sys.argv[1:])}"] if sys.argv[1:] else [])]),
        "hardware": hardware(),
        "texts": {f"{name} {split}": len(found.examples) for (name, split), found in judged.items()},
        "ways": {way: {name: _as_dict(cell) for name, cell in row.items()} for way, row in table.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "selectors.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report["command"], report["texts"], table)
    (out / "selectors.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def _limits(option: str, given: str) -> list[tuple[str, int]]:
    """Names and numbers of ``name=number,…``."""
    found = []
    for part in given.split(","):
        name, _, number = part.partition("=")
        if not (name and number.isdigit() and int(number)):
            raise typer.BadParameter(f"`{part}` is not `corpus=texts`, such as genia=300", param_hint=option)
        found.append((name, int(number)))
    return found


def _judged(name: str, split: str, limit: int, settings: Settings, selector: Selector, out: Path) -> Judged:
    examples = read(corpus_folder(name, settings), split)[:limit]
    file = out / f"{name}-{split}-{limit}.jsonl"
    if not file.is_file():
        err.print(f"candidates: {name} {split}", highlight=False)
        _make(examples, settings, file)
    found: list[list[Candidate]] = [[] for _ in examples]
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            candidate = Candidate.model_validate_json(line)
            found[int(candidate.segment.document_id)].append(candidate)
    everything = [candidate for candidates in found for candidate in candidates]
    known = iter(selector.judge(everything))
    return Judged(examples, [[(candidate, next(known)) for candidate in candidates] for candidates in found])


def _make(examples: Sequence[Example], settings: Settings, file: Path) -> None:
    """The generator's candidates, one a line; the folder is for this machine alone: they hold text."""
    seen: dict[tuple[str, int, int, str], Candidate] = {}

    def observe(candidates: tuple[Candidate, ...]) -> None:
        for c in candidates:
            seen[c.segment.document_id, c.start, c.end, c.type] = c

    plain = settings.model_copy(update={"selector": ""})
    Extractor.load(plain, observe, Calibration.default()).extract(documents_of(examples))
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(candidate.model_dump_json() + "\n" for _, candidate in sorted(seen.items()))
    file.write_text(text, encoding="utf-8")


def _observations(found: Judged, change: Callable[[Judgement], Judgement], greedy: bool) -> list[Observation]:
    return [
        Observation(
            c.type, change(known), any((m.start, m.end, m.type) == (c.start, c.end, c.type) for m in e.mentions)
        )
        for e, candidates in zip(found.examples, found.candidates, strict=True)
        for c, known in candidates
        if c.greedy or not greedy
    ]


def _calibrated(found: Sequence[Judged], change: Callable[[Judgement], Judgement], greedy: bool) -> Calibration:
    gold = Counter(
        type_ for j in found for e in j.examples for _, _, type_ in {(m.start, m.end, m.type) for m in e.mentions}
    )
    return fit([o for j in found for o in _observations(j, change, greedy)], gold)


def _scores(
    found: Judged, calibration: Calibration, change: Callable[[Judgement], Judgement], greedy: bool
) -> list[Scores]:
    scores = []
    for example, candidates in zip(found.examples, found.candidates, strict=True):
        kept = [
            Scored(c, probability)
            for c, known in candidates
            if (c.greedy or not greedy)
            and (probability := calibration.probability(c.type, change(known))) >= calibration.threshold(c.type)
        ]
        entities = merge(example.text, _by_segment(kept))[0]
        gold = {(m.start, m.end, m.type) for m in example.mentions}
        scores.append(score(example.text, gold, {(e.start, e.end, e.type) for e in entities}))
    return scores


def _by_segment(kept: Sequence[Scored]) -> list[Entity]:
    segments: dict[int, list[Scored]] = {}
    for one in kept:
        segments.setdefault(one.candidate.segment.index, []).append(one)
    return [entity for scored in segments.values() for entity in keep(scored)]


def _cell(
    found: Judged,
    scores: Sequence[Scores],
    base: Sequence[Scores],
    calibration: Calibration,
    change: Callable[[Judgement], Judgement],
    greedy: bool,
) -> Cell:
    whole = sum(scores, Scores())
    observed = _observations(found, change, greedy)
    return Cell(
        whole.micro.precision,
        whole.micro.recall,
        whole.micro.f1,
        intervals(scores)["micro.f1"],
        None if scores is base else compare(scores, base)["micro.f1"],
        whole.errors.predicted["boundary"],
        expected_calibration_error(
            [calibration.probability(o.type, o.known) for o in observed], [o.correct for o in observed]
        ),
    )


def _as_dict(cell: Cell) -> dict[str, Any]:
    found = {name: getattr(cell, name) for name in Cell.__slots__}
    difference = found["difference"]
    found["difference"] = difference and {name: getattr(difference, name) for name in Difference.__slots__}
    return found


def markdown(command: str, texts: dict[str, int], table: dict[str, dict[str, Cell]]) -> str:
    """The report as a table a corpus."""
    lines = [f"    {command}", "", ", ".join(f"{count} texts of {name}" for name, count in texts.items()) + ".", ""]
    for name in next(iter(table.values())):
        lines += [
            f"**{name}**",
            "",
            "| decided by | precision | recall | F1 | difference | boundary errors | calibration error |",
            "|---|---|---|---|---|---|---|",
        ]
        for way, row in table.items():
            cell = row[name]
            f1 = f"{cell.f1:.3f}{_range(cell.interval)}"
            other = cell.difference
            apart = f"{other.value:+.3f}{_range(other.interval)}, p {other.p:.3f}" if other else ""
            lines.append(
                f"| {way} | {cell.precision:.3f} | {cell.recall:.3f} | {f1} | {apart} | {cell.boundary} | "
                f"{cell.calibration_error:.3f} |"
            )
        lines.append("")
    return "\n".join(lines)


def _range(interval: Interval | None) -> str:
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


if __name__ == "__main__":
    typer.run(main)
