"""The commands that make and measure models: ``biobracket train …``, ``candidates``, ``evaluate``."""

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

    from shared.messages import Document, Extraction
    from training import reports
    from training.corpora import Example

out = Console()
err = Console(stderr=True)

train = typer.Typer(help="Make models.", no_args_is_help=True)

LinesOption = Annotated[
    Path | None,
    typer.Option(
        "--lines",
        help="A file that keeps what the generator says: a later run of the same generator takes it from there. It "
        "holds text.",
    ),
]
CorporaOption = Annotated[
    str, typer.Option("--corpora", help="Corpora, and how many of their texts: `genia=600,bc5cdr`.")
]
SplitOption = Annotated[str, typer.Option("--split", help="Its file; never the one that is reported.")]
LimitOption = Annotated[int, typer.Option("--limit", min=0, help="Only the first so many texts; 0 takes all.")]


@train.command("generator")
def train_generator(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the model; a run of it that was cut off goes on.")],
    config_file: Annotated[
        str, typer.Option("--config", help="A YAML file, or the name of one in training/configs.")
    ] = "gemma-3-270m",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A field of it and its value, `minutes=30`; repeated.")
    ] = None,
    on_ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="As a Ray Train job, or in this process alone.")
    ] = True,
) -> None:
    """Fine-tune a generator on corpora of both languages. The fields of the configuration: training/config.py."""
    with _clear_errors():
        from services.extractor import DevScores
        from training import job
        from training.config import CONFIGS, GeneratorConfig
        from training.progress import plot

        named = CONFIGS / f"{config_file}.yaml"
        config = GeneratorConfig.load(named if named.is_file() else Path(config_file), overrides or ())
        settings = Settings()
        measure = DevScores(settings, {name: c.types for name, c in config.corpora.items()}, config.measure_texts)
        (job.run if on_ray else job.run_here)(config, settings, folder, measure)
        plot(folder)
    out.print(f"{folder}; next: BIOBRACKET_ADAPTER={folder} biobracket train calibration", highlight=False)


@train.command("selector")
def train_selector(
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of the selector; a run of it that was cut off goes on.")
    ],
    config_file: Annotated[
        str, typer.Option("--config", help="A YAML file, or the name of one in training/configs.")
    ] = "selector",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A field of it and its value, `minutes=30`; repeated.")
    ] = None,
    on_ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="As a Ray Train job, or in this process alone.")
    ] = True,
) -> None:
    """Train the selector's span encoder on corpora of both languages. The fields: training/config.py."""
    with _clear_errors():
        from training import job
        from training.config import CONFIGS, SelectorConfig
        from training.progress import plot

        named = CONFIGS / f"{config_file}.yaml"
        config = SelectorConfig.load(named if named.is_file() else Path(config_file), overrides or ())
        (job.run if on_ray else job.run_here)(config, Settings(), folder)
        plot(folder)
    out.print(f"{folder}; next: BIOBRACKET_SELECTOR={folder} biobracket train calibration", highlight=False)


@train.command("gazetteer")
def train_gazetteer(corpora: CorporaOption = "genia,cmeee_v2,bc5cdr,ccks2017", split: SplitOption = "train") -> None:
    """Count which words are mentions, and save the counts beside the selector of the settings. They hold no text."""
    with _clear_errors():
        from shared.adapters import selector_folder
        from training.corpora import read_all
        from training.gazetteer import count

        settings = Settings()
        folder = selector_folder(settings)
        if folder is None:
            _fail("selector: none is set; name the one that the gazetteer is for in BIOBRACKET_SELECTOR")
        found = count(read_all(corpora, split, settings))
        found.save(folder)
    out.print(f"{len(found)} different words; saved in {folder}", highlight=False)


@train.command("calibration")
def train_calibration(
    corpora: CorporaOption = "genia,cmeee_v2,bc5cdr", split: SplitOption = "dev", lines: LinesOption = None
) -> None:
    """Fit confidence and thresholds, and save them beside the selector of the settings, or else beside the adapter."""
    with _clear_errors():
        from services.extractor import Extractor
        from shared.adapters import calibration_file
        from shared.calibration import Calibration
        from training.calibration import Observation, expected_calibration_error, fit
        from training.corpora import documents_of, read_all

        settings = Settings()
        file = calibration_file(settings)
        if file is None:
            _fail("adapter: none is set; name the one to calibrate in BIOBRACKET_ADAPTER")
        asked = read_all(corpora, split, settings)
        extractor = Extractor.load(settings, Calibration.default(), lines)
        observations: list[Observation] = []
        gold: Counter[str] = Counter()
        for name, examples in asked.items():
            _tell_trimmed(examples)
            with _shown(documents := documents_of(examples), f"{name} {split}") as done:
                found = extractor.candidates(documents, done)
            truths = [{(m.start, m.end, m.type) for m in example.mentions} for example in examples]
            gold.update(type_ for truth in truths for _, _, type_ in truth)
            right = [(c.start, c.end, c.type) in truth for of, truth in zip(found, truths, strict=True) for c in of]
            everything = [c for of in found for c in of]
            judged = extractor.selector.judge(everything)
            observations += [Observation(c.type, of, y) for c, of, y in zip(everything, judged, right, strict=True)]
        calibration = fit(observations, gold)
        calibration.save(file)
        error = expected_calibration_error(
            [calibration.probability(o.type, o.known) for o in observations],
            [o.correct for o in observations],
        )
    out.print(
        f"{len(observations)} candidates, {sum(gold.values())} gold mentions; expected calibration error on them "
        f"{error:.3f}; saved {file}",
        highlight=False,
    )


def candidates(
    corpus: Annotated[str, typer.Option("--corpus", help="A folder, or a name below BIOBRACKET_CORPORA.")],
    file: Annotated[Path, typer.Option("--out", help="File of the candidates, one JSON object a line; without text.")],
    split: SplitOption = "train",
    folds: Annotated[int, typer.Option("--folds", min=1, help="Parts of the split, as the run was given.")] = 1,
    fold: Annotated[int, typer.Option("--fold", min=0, help="The part that it was not trained on, from 0.")] = 0,
    limit: LimitOption = 0,
    lines: LinesOption = None,
) -> None:
    """The generator's candidates on texts that it was not trained on, for `train selector --set candidates=[…]`."""
    with _clear_errors():
        from services.extractor import Extractor
        from shared.calibration import Calibration
        from training.candidates import rows, write
        from training.corpora import corpus_folder, documents_of, part, read

        settings = Settings().model_copy(update={"selector": ""})
        place = corpus_folder(corpus, settings)
        examples = _examples(part(read(place, split), folds, fold, inside=True), limit)
        extractor = Extractor.load(settings, Calibration.default(), lines)
        with _shown(documents := documents_of(examples), f"{place.name} {split}") as done:
            found = rows(examples, extractor.candidates(documents, done))
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, found)
    right = sum(row.right for row in found)
    out.print(f"{len(found)} candidates of {len(examples)} texts, {right} of them right; {file}", highlight=False)


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
    with _clear_errors():
        from training import predictions, reports
        from training.corpora import corpus_folder, documents_of, read
        from training.evaluation import Scores, score_all
        from training.significance import compare, intervals

        settings = Settings()
        if selector not in ("on", "off"):
            _fail(f"selector: `{selector}` is neither `on` nor `off`")
        if selector == "off":
            settings = settings.model_copy(update={"selector": ""})
        place = corpus_folder(corpus, settings)
        given = _mapping(mapping or ())
        examples = _examples(read(place, split, given), limit)
        documents = documents_of(examples)
        # All that can be wrong with the options, before a long run.
        other = predictions.read(against, documents) if against else None
        if folder is not None:
            if against is not None and against.resolve() == (folder / reports.PREDICTIONS).resolve():
                _fail("report: its folder holds the run that --against names, which would be lost; name another one")
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
            _fail(f"map: `{part}` is not `label=key`, such as Gene=protein, or `label=` to leave the label out")
        if mapping.setdefault(label, key) != key:
            _fail(f"map: the label {label} is given twice, as `{mapping[label]}` and as `{key}`; keep one of them")
    return mapping


def _examples(found: list[Example], limit: int) -> list[Example]:
    examples = found[:limit] if limit else found
    _tell_trimmed(examples)
    return examples


def _tell_trimmed(examples: Sequence[Example]) -> None:
    if trimmed := sum(example.trimmed for example in examples):
        message = f"warning: {trimmed} mentions of the corpus have white space at their ends, which was trimmed"
        err.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _extractions(
    source: Path | None, documents: Sequence[Document], settings: Settings, lines: Path | None, what: str
) -> tuple[list[Extraction], float | None]:
    """The extractions of a file, or those of the model, with the seconds it took where nothing was known before."""
    if source is not None:
        from training.predictions import read

        return read(source, documents), None
    from services.extractor import Extractor

    extractor = Extractor.load(settings, lines=lines)
    begun = time.monotonic()
    with _shown(documents, what) as done:
        extractions = extractor.extract(documents, done)
    seconds = time.monotonic() - begun
    return extractions, None if any(e.counts.cached_segments for e in extractions) else seconds


@contextmanager
def _shown(documents: Sequence[Document], what: str) -> Iterator[Callable[[Extraction], None]]:
    """A progress bar, and what tells it of a document that is done."""
    with _progress() as progress:
        task = progress.add_task(what, total=sum(len(d.text) for d in documents))
        yield lambda e: progress.advance(task, e.counts.characters)


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


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Errors that name a setting and its remedy are printed without a traceback."""
    from services.line_file import LineFileError
    from shared.base_model import BaseModelError
    from shared.calibration import CalibrationError
    from shared.errors import ExemplarError, SelectorError
    from training.config import ConfigError, TrainingError
    from training.corpora import CorpusError
    from training.predictions import PredictionsError
    from training.reports import ReportError

    ours = (
        BaseModelError,
        CalibrationError,
        ConfigError,
        CorpusError,
        ExemplarError,
        LineFileError,
        PredictionsError,
        ReportError,
        SelectorError,
        TrainingError,
    )
    try:
        yield
    except (*ours, FileNotFoundError) as error:
        _fail(str(error))


def _progress() -> Any:
    from services.cli import _progress as progress

    return progress()


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)
