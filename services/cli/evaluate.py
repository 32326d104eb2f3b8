"""The command that scores a corpus: ``biobracket evaluate``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from services.cli.console import LimitOption, LinesOption, clear_errors, document_progress, fail, out, warn_trimmed
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.messages import Document, Extraction
    from training.data.corpora import Example
    from training.evaluation import reports


def evaluate(
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            help="A folder of <split>.jsonl files in the format of docs/corpora.md, including corpora that the model "
            "was not trained on; or the name of one in BIOBRACKET_CORPORA.",
        ),
    ],
    split: Annotated[
        str, typer.Option("--split", help="File of the corpus: `test` for reporting, `dev` for tuning.")
    ] = "test",
    limit: LimitOption = 0,
    selector: Annotated[
        str, typer.Option("--selector", help="`on`: as the settings say; `off`: the generator's confidence alone.")
    ] = "on",
    mapped: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="Map a label of the corpus to a type's key, `label=key`; `label=` ignores the label; repeatable. "
            "Labels that are keys or names of types need no mapping.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; `micro.f1` is the strict micro F1.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--report", help="Folder for scores.json, scores.md, plots and predictions.jsonl."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Score the predictions.jsonl of an earlier report instead of running the model."),
    ] = None,
    lines: LinesOption = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Compare with another run, given its predictions.jsonl.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Bootstrap resamples for intervals and comparison.")
    ] = 1000,
) -> None:
    """Score on a corpus: strict, that is exact boundaries and type, with 95 % intervals and an error analysis."""
    with clear_errors():
        from training.data.corpora import corpus_folder, documents_of, read
        from training.evaluation import predictions, reports

        settings = _settings(selector)
        place = corpus_folder(corpus, settings)
        mapping = _mapping(mapped or ())
        examples = read(place, split, mapping)[: limit or None]
        warn_trimmed(examples)
        documents = documents_of(examples)
        # Everything that can be wrong with the options is checked before a long run.
        other = None if against is None else (str(against), predictions.read(against, documents))
        if folder is not None:
            _prepare(folder, against)
        extractions, seconds = _extractions(source, documents, settings, lines, f"{place.name} {split}")
        if folder is not None:
            predictions.write(folder / reports.PREDICTIONS, extractions)
        run = reports.Run(
            corpus=place.name,
            split=split,
            model_revision=_revisions(extractions),
            segments=sum(extraction.counts.segments for extraction in extractions),
            seconds=seconds,
            mapping=mapping,
        )
        report = _report(run, examples, extractions, other, resamples)
        if folder is not None:
            report.save(folder)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        _print_report(report)


def _settings(selector: str) -> Settings:
    settings = Settings()
    if selector not in ("on", "off"):
        fail(f"selector: `{selector}` is neither `on` nor `off`")
    return settings if selector == "on" else settings.model_copy(update={"selector": ""})


def _mapping(given: Sequence[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for part in given:
        label, _, key = (found.strip() for found in part.rpartition("="))
        if not label:
            fail(f"map: `{part}` is not `label=key`, such as Gene=protein, or `label=` to ignore the label")
        if mapping.setdefault(label, key) != key:
            fail(f"map: the label {label} is given twice, as `{mapping[label]}` and as `{key}`; keep one of them")
    return mapping


def _prepare(folder: Path, against: Path | None) -> None:
    """Make the folder of the report, unless it would overwrite the run to compare with."""
    from training.evaluation import reports

    if against is not None and against.resolve() == (folder / reports.PREDICTIONS).resolve():
        fail("report: the folder holds the run given to --against, which would be overwritten; choose another one")
    reports.prepare(folder)


def _extractions(
    source: Path | None, documents: Sequence[Document], settings: Settings, lines: Path | None, title: str
) -> tuple[list[Extraction], float | None]:
    """Extractions from a file or from the model; seconds only if the model did all of the work."""
    if source is not None:
        from training.evaluation.predictions import read

        return read(source, documents), None
    from services.extractor import Extractor

    extractor = Extractor.load(settings, lines=lines)
    started = time.monotonic()
    with document_progress(documents, title) as done:
        extractions = extractor.extract(documents, done)
    seconds = time.monotonic() - started
    return extractions, None if any(e.counts.cached_segments for e in extractions) else seconds


def _report(
    run: reports.Run,
    examples: Sequence[Example],
    extractions: Sequence[Extraction],
    other: tuple[str, Sequence[Extraction]] | None,
    resamples: int,
) -> reports.Report:
    """Score a run and compare it with ``other``: the file of another run and its extractions."""
    from training.evaluation import reports
    from training.evaluation.scores import Scores, score_all
    from training.evaluation.significance import compare, intervals

    scores = score_all(examples, extractions)
    comparison = None
    if other is not None:
        file, predicted = other
        differences = compare(scores, score_all(examples, predicted), resamples=resamples)
        comparison = reports.Comparison(file, _revisions(predicted), differences)
    return reports.Report(
        run=run,
        scores=sum(scores, Scores()),
        intervals=intervals(scores, resamples=resamples),
        resamples=resamples,
        comparison=comparison,
    )


def _revisions(extractions: Sequence[Extraction]) -> str:
    return ", ".join(sorted({e.model_revision for e in extractions}))


def _print_report(report: reports.Report) -> None:
    for table in (report.overview(), report.types(), report.errors(), report.against()):
        if table is not None:
            shown = Table(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
            for column in table.columns:
                shown.add_column(column, justify="right" if shown.columns else "left", overflow="fold")
            for row in table.rows:
                shown.add_row(*row)
            out.print(shown)
            out.print()
    run = report.run
    out.print(
        f"{run.corpus} {run.split}: {report.scores.documents} texts, {run}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
