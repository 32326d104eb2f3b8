"""What joint training is worth: the same base trained in several ways with equal compute.

    BIOBRACKET_CORPORA=… make ablation ARGS='--tokens 200000 --segments 200'

Every variant starts from the base model and sees the same number of tokens in training: both languages together, each
alone, and each corpus alone. Each is scored greedily, without calibration, on the first texts of every ``test`` split,
including corpora that it never saw. Intervals and differences are those of ``biobracket evaluate``.

An interrupted run resumes: finished parts are in the folder ``--out``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.hardware import hardware, make_command
from services.extractor import Extractor
from shared.selection.calibration import Calibration
from shared.settings import Settings
from shared.text.segmentation import segment
from training.config import DEFAULT, GeneratorConfig
from training.data.corpora import Example, corpus_folder, documents_of, read
from training.evaluation import predictions
from training.evaluation.scores import Scores, score_all
from training.evaluation.significance import Difference, Interval, compare, intervals
from training.job import run_here
from training.tuning.checkpoints import MANIFEST

err = Console(stderr=True)

JOINT = "joint"


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to train."""

    name: str
    corpora: tuple[str, ...]


VARIANTS = (
    Variant(JOINT, ("genia", "cmeee_v2", "bc5cdr")),
    Variant("Chinese only (CMeEE-V2)", ("cmeee_v2",)),
    Variant("English only", ("genia", "bc5cdr")),
    Variant("GENIA only", ("genia",)),
    Variant("BC5CDR only", ("bc5cdr",)),
)


@dataclass(frozen=True, slots=True)
class CorpusScore:
    """A variant's F1 on a corpus, and how it differs from the joint one's."""

    f1: float
    interval: Interval | None
    difference: Difference | None


def main(
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the report.")] = Path("runs/ablation"),
    tokens: Annotated[int, typer.Option(min=1000, help="Tokens that every variant is trained on.")] = 200_000,
    segments: Annotated[int, typer.Option(min=1, help="Segments of each test split that are scored.")] = 200,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the configuration of all variants; repeated.")
    ] = None,
) -> None:
    """Train and score all variants, and write ablation.md and ablation.json."""
    settings = Settings()
    tests = {name: _first(read(corpus_folder(name, settings), "test"), segments) for name in VARIANTS[0].corpora}
    scores: dict[str, dict[str, list[Scores]]] = {}
    for variant in VARIANTS:
        folder = out / variant.name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
        config = configuration(variant, tokens, overrides or ())
        if not (folder / MANIFEST).is_file():
            err.print(f"training: {variant.name}", highlight=False)
            run_here(config, settings, folder)
        scores[variant.name] = scored(variant, folder, settings, tests)
    report = {
        "command": make_command("ablation"),
        "hardware": hardware(),
        "tokens": tokens,
        "texts": {name: len(found) for name, found in tests.items()},
        "segments": segments,
        "variants": {
            name: {corpus: asdict(cell) for corpus, cell in row.items()} for name, row in cells(scores).items()
        },
    }
    (out / "ablation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "ablation.md").write_text(markdown(report), encoding="utf-8")
    sys.stdout.write(markdown(report))


def configuration(variant: Variant, tokens: int, overrides: Sequence[str]) -> GeneratorConfig:
    """The default configuration with the variant's corpora, which keep their shares relative to one another."""
    given = GeneratorConfig.load(DEFAULT, ["measure_every=0", "minutes=100000", f"max_tokens={tokens}", *overrides])
    corpora = {name: given.corpora[name] for name in variant.corpora}
    return given.model_copy(update={"corpora": corpora})


def _first(examples: Sequence[Example], segments: int) -> list[Example]:
    """The first texts that together have at least so many segments."""
    chosen: list[Example] = []
    have = 0
    for example in examples:
        if have >= segments:
            break
        chosen.append(example)
        have += len(segment(example.text, example.lang, GeneratorConfig.model_fields["max_units"].default))
    return chosen


def scored(
    variant: Variant, folder: Path, settings: Settings, tests: dict[str, list[Example]]
) -> dict[str, list[Scores]]:
    """The scores of each text by corpus; existing predictions are reused."""
    theirs = settings.model_copy(update={"adapter": str(folder)})
    extractor: Extractor | None = None
    found = {}
    for name, examples in tests.items():
        documents = documents_of(examples)
        file = folder / f"{name}.predictions.jsonl"
        if not file.is_file():
            extractor = extractor or Extractor.load(theirs, calibration=Calibration.default())
            err.print(f"scoring: {variant.name}, {name}", highlight=False)
            predictions.write(file, extractor.extract(documents))
        found[name] = score_all(examples, predictions.read(file, documents))
    return found


def cells(scores: dict[str, dict[str, list[Scores]]]) -> dict[str, dict[str, CorpusScore]]:
    """The table: by variant and corpus."""
    return {
        name: {
            corpus: CorpusScore(
                sum(found, Scores()).micro.f1,
                intervals(found)["micro.f1"],
                None if name == JOINT else compare(found, scores[JOINT][corpus])["micro.f1"],
            )
            for corpus, found in row.items()
        }
        for name, row in scores.items()
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table: F1 with its interval, below it the difference from the joint variant."""
    corpora = list(report["texts"])
    lines = [
        f"    {report['command']}",
        "",
        f"{_machine(report['hardware'])}. {report['tokens']:,} training tokens each; "
        + ", ".join(f"{count} texts of {name}" for name, count in report["texts"].items())
        + " `test`. F1 with 95 % intervals; in brackets the difference from joint with its interval and p value.",
        "",
        "| variant | " + " | ".join(corpora) + " |",
        "|---|" + "---|" * len(corpora),
    ]
    for name, row in report["variants"].items():
        shown = []
        for corpus in corpora:
            cell = row[corpus]
            text = f"{cell['f1']:.3f}{_range(cell['interval'])}"
            if cell["difference"]:
                value = cell["difference"]
                text += f" [{value['value']:+.3f}{_range(value['interval'])}, p {value['p']:.3f}]"
            shown.append(text)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _machine(hardware: dict[str, Any]) -> str:
    return hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"


def _range(interval: Sequence[float] | None) -> str:
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


if __name__ == "__main__":
    typer.run(main)
