"""The commands that make and measure models: ``biobracket train generator``, ``train calibration``, ``evaluate``."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.extractor import Extractor
    from shared.messages import Candidate, Document, Extraction
    from training import reports
    from training.corpora import Example
    from training.evaluation import Scores
    from training.generator import Report

out = Console()
err = Console(stderr=True)

train = typer.Typer(help="Make models.", no_args_is_help=True)

LimitOption = Annotated[int, typer.Option("--limit", min=0, help="Only the first so many texts; 0 takes all.")]


@train.command("generator")
def train_generator(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the adapter.")],
    corpora: Annotated[
        str, typer.Option("--corpora", help="Corpora with their shares of tokens, `name=share` separated by commas.")
    ] = "genia=0.33,cmeee_v2=0.45,bc5cdr=0.22",
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes to train.")] = 60.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on at most.")] = 10**9,
    batch_tokens: Annotated[int, typer.Option(min=64, help="Tokens of a batch.")] = 2048,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches to a step.")] = 1,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Seed of order and initial weights.")] = 13,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model: minutes to begin, a fifth faster on a CPU.")
    ] = False,
    init: Annotated[Path | None, typer.Option("--init", help="Adapter to go on from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")] = False,
) -> None:
    """Fine-tune an adapter of the base model on corpora of both languages."""
    with _clear_errors():
        from training.generator import GeneratorConfig
        from training.generator import train as run

        config = GeneratorConfig(
            out=folder,
            corpora=_shares(corpora),
            minutes=minutes,
            max_tokens=max_tokens,
            batch_tokens=batch_tokens,
            accumulate=accumulate,
            rank=rank,
            alpha=2 * rank,
            learning_rate=learning_rate,
            seed=seed,
            compile=compiled,
            init=init,
            resume=resume,
        )
        with _progress() as progress:
            task = progress.add_task("preparing", total=60 * minutes)

            def report(now: Report) -> None:
                rate = now.tokens / now.seconds
                progress.update(
                    task,
                    completed=max(now.seconds, now.tokens / max_tokens * 60 * minutes),
                    description=f"step {now.step}, loss {now.loss:.4f}, {rate:.0f} tokens/s",
                )
                if now.dev is not None or not err.is_terminal:
                    dev = "".join(f", dev {name} {loss:.4f}" for name, loss in (now.dev or {}).items())
                    err.print(
                        f"step {now.step}: {now.tokens} tokens, {now.seconds:.0f} s, loss {now.loss:.4f}{dev}",
                        highlight=False,
                    )

            made = run(config, Settings(), report)
    err.print(f"adapter in {made}; next: BIOBRACKET_ADAPTER={made} biobracket train calibration", highlight=False)


@train.command("calibration")
def train_calibration(
    corpora: Annotated[str, typer.Option("--corpora", help="Corpora, separated by commas.")] = "genia,cmeee_v2,bc5cdr",
    split: Annotated[str, typer.Option("--split", help="Its file; never the one that is reported.")] = "dev",
    limit: LimitOption = 0,
) -> None:
    """Fit confidence and thresholds of the adapter that BIOBRACKET_ADAPTER names, and save them beside it."""
    with _clear_errors():
        from services.extractor import Extractor
        from shared.adapters import CALIBRATION_FILE, adapter_folder
        from shared.calibration import Calibration
        from training.calibration import Observation, expected_calibration_error, fit
        from training.corpora import corpus_folder, read

        settings = Settings()
        folder = adapter_folder(settings)
        if folder is None:
            _fail("adapter: none is set; name the one to calibrate in BIOBRACKET_ADAPTER")
        seen: dict[tuple[str, int, int, str], Candidate] = {}

        def keep(candidates: tuple[Candidate, ...]) -> None:
            for found in candidates:
                seen[found.segment.document_id, found.start, found.end, found.type] = found

        extractor = Extractor.load(settings, keep, Calibration.default())
        observations: list[Observation] = []
        gold: Counter[str] = Counter()
        for name in corpora.split(","):
            examples = _examples(read(corpus_folder(name, settings), split), limit)
            seen.clear()
            _extract(extractor, _documents(examples), f"{name} {split}")
            truth = {(str(i), m.start, m.end, m.type) for i, e in enumerate(examples) for m in e.mentions}
            gold.update(type_ for _, _, _, type_ in truth)
            observations += [
                Observation(key[3], found.generator_confidence, found.greedy, key in truth)
                for key, found in sorted(seen.items())
            ]
        calibration = fit(observations, gold)
        calibration.save(folder / CALIBRATION_FILE)
        error = expected_calibration_error(
            [calibration.probability(o.type, o.confidence, o.greedy) for o in observations],
            [o.correct for o in observations],
        )
    out.print(
        f"{len(observations)} candidates, {sum(gold.values())} gold mentions; expected calibration error on them "
        f"{error:.3f}; saved {folder / CALIBRATION_FILE}",
        highlight=False,
    )


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
    against: Annotated[
        Path | None, typer.Option("--against", help="Compare with another run: its predictions.jsonl.")
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Resamples of intervals and comparison.")
    ] = 1000,
) -> None:
    """Strict scores on a corpus: exact boundaries and type, at document offsets; with 95 % intervals and errors."""
    with _clear_errors():
        from training import predictions, reports
        from training.corpora import corpus_folder, read
        from training.evaluation import Scores
        from training.significance import compare, intervals

        settings = Settings()
        place = corpus_folder(corpus, settings)
        given = _mapping(mapping or ())
        examples = _examples(read(place, split, given), limit)
        documents = _documents(examples)
        # All that can be wrong with the options, before a long run.
        other = predictions.read(against, documents) if against else None
        if folder is not None:
            if against is not None and against.resolve() == (folder / reports.PREDICTIONS).resolve():
                _fail("report: its folder holds the run that --against names, which would be lost; name another one")
            reports.prepare(folder)
        extractions, seconds = _extractions(source, documents, settings, f"{place.name} {split}")
        if folder is not None:
            predictions.write(folder / reports.PREDICTIONS, extractions)
        scores = _scores(examples, extractions)
        comparison = None
        if against is not None and other is not None:
            differences = compare(scores, _scores(examples, other), resamples=resamples)
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
            _fail(f"map: `{part}` is not `label=key`, such as Gene=protein, or `label=` to leave the label out")
        if mapping.setdefault(label, key) != key:
            _fail(f"map: the label {label} is given twice, as `{mapping[label]}` and as `{key}`; keep one of them")
    return mapping


def _examples(found: list[Example], limit: int) -> list[Example]:
    return found[:limit] if limit else found


def _documents(examples: Sequence[Example]) -> list[Document]:
    from shared.messages import Document

    # The place in the list is the id: a corpus may use one twice.
    return [Document(id=str(i), text=e.text, lang=e.lang, types=e.types) for i, e in enumerate(examples)]


def _extractions(
    source: Path | None, documents: Sequence[Document], settings: Settings, what: str
) -> tuple[list[Extraction], float | None]:
    """The extractions of a file, or those of the model with the seconds it took."""
    if source is not None:
        from training.predictions import read

        return read(source, documents), None
    from services.extractor import Extractor

    extractor = Extractor.load(settings)
    begun = time.monotonic()
    extractions = _extract(extractor, documents, what)
    return extractions, time.monotonic() - begun


def _extract(extractor: Extractor, documents: Sequence[Document], what: str) -> list[Extraction]:
    with _progress() as progress:
        task = progress.add_task(what, total=sum(len(d.text) for d in documents))
        done: Callable[[Extraction], None] = lambda e: progress.advance(task, e.counts.characters)  # noqa: E731
        return extractor.extract(documents, done)


def _scores(examples: Sequence[Example], extractions: Sequence[Extraction]) -> list[Scores]:
    """The scores of each text."""
    from training.evaluation import score

    return [
        score(
            example.text,
            [(m.start, m.end, m.type) for m in example.mentions],
            [(e.start, e.end, e.type) for e in extraction.entities],
        )
        for example, extraction in zip(examples, extractions, strict=True)
    ]


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


def _shares(given: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in given.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share or 1.0)
        except ValueError:
            _fail(f"corpora: `{part}` is not `name=share`, such as genia=0.4")
        if not name.strip() or shares[name.strip()] <= 0:
            _fail(f"corpora: `{part}` needs a name and a share above 0")
    return shares


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Errors that name a setting and its remedy are printed without a traceback."""
    from shared.base_model import BaseModelError
    from shared.calibration import CalibrationError
    from training.corpora import CorpusError
    from training.predictions import PredictionsError
    from training.reports import ReportError

    try:
        yield
    except (BaseModelError, CalibrationError, CorpusError, PredictionsError, ReportError, FileNotFoundError) as error:
        _fail(str(error))


def _progress() -> Any:
    from services.cli import _progress as progress

    return progress()


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)
