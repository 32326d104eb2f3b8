"""The command that scores: ``biobracket evaluate``."""

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
    from training.evaluation import reports


def evaluate(
    corpus: Annotated[
        str,
        typer.Option(
            "--corpus",
            help="Any folder of <split>.jsonl files in the format of the README, also of a corpus the model was not "
            "trained on; or a name below the folder BIOBRACKET_CORPORA names.",
        ),
    ],
    split: Annotated[str, typer.Option("--split", help="Its file: `test` for reporting, `dev` for tuning.")] = "test",
    limit: LimitOption = 0,
    selector: Annotated[
        str, typer.Option("--selector", help="`on`: that of the settings; `off`: the generator's confidence alone.")
    ] = "on",
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="A label of the corpus and its type's key, `label=key`; `label=` leaves the label out; repeated. "
            "Labels that are keys or names of types need none.",
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
        Path | None, typer.Option("--against", help="Compare with another run: its predictions.jsonl.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Resamples of intervals and comparison.")
    ] = 1000,
) -> None:
    """Strict scores on a corpus: exact boundaries and type, at document offsets; with 95 % intervals and errors."""
    with clear_errors():
        from training.data.corpora import corpus_folder, documents_of, read
        from training.evaluation import predictions, reports
        from training.evaluation.scores import Scores, score_all
        from training.evaluation.significance import compare, intervals

        settings = Settings()
        if selector not in ("on", "off"):
            fail(f"selector: `{selector}` is neither `on` nor `off`")
        if selector == "off":
            settings = settings.model_copy(update={"selector": ""})
        place = corpus_folder(corpus, settings)
        given = _mapping(mapping or ())
        examples = read(place, split, given)[: limit or None]
        warn_trimmed(examples)
        documents = documents_of(examples)
        # All that can be wrong with the options, before a long run.
        other = predictions.read(against, documents) if against else None
        if folder is not None:
            if against is not None and against.resolve() == (folder / reports.PREDICTIONS).resolve():
                fail("report: its folder holds the run that --against names, which would be lost; name another one")
            reports.prepare(folder)
        extractions, seconds = _extractions(source, documents, settings, lines, f"{place.name} {split}")
        if folder is not None:
            predictions.write(folder / reports.PREDICTIONS, extractions)
        scores = score_all(examples, extractions)
        comparison = None
        if against is not None and other is not None:
            differences = compare(scores, score_all(examples, other), resamples=resamples)
            comparison = reports.Comparison(str(against), _revisions(other), differences)
        report = reports.Report(
            run=reports.Run(
                corpus=place.name,
                split=split,
                model_revision=_revisions(extractions),
                segments=sum(e.counts.segments for e in extractions),
                seconds=seconds,
                mapping=given,
            ),
            scores=sum(scores, Scores()),
            intervals=intervals(scores, resamples=resamples),
            resamples=resamples,
            comparison=comparison,
        )
        if folder is not None:
            report.save(folder)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        _print_report(report)


def _mapping(given: Sequence[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for part in given:
        label, _, key = (found.strip() for found in part.rpartition("="))
        if not label:
            fail(f"map: `{part}` is not `label=key`, such as Gene=protein, or `label=` to leave the label out")
        if mapping.setdefault(label, key) != key:
            fail(f"map: the label {label} is given twice, as `{mapping[label]}` and as `{key}`; keep one of them")
    return mapping


def _extractions(
    source: Path | None, documents: Sequence[Document], settings: Settings, lines: Path | None, what: str
) -> tuple[list[Extraction], float | None]:
    """The extractions of a file, or those of the model, with the seconds it took where nothing was known before."""
    if source is not None:
        from training.evaluation.predictions import read

        return read(source, documents), None
    from services.extractor import Extractor

    extractor = Extractor.load(settings, lines=lines)
    begun = time.monotonic()
    with document_progress(documents, what) as done:
        extractions = extractor.extract(documents, done)
    seconds = time.monotonic() - begun
    return extractions, None if any(e.counts.cached_segments for e in extractions) else seconds


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
