"""What commands share: consoles, errors, progress, settings and options. No command is imported here."""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError
from rich.console import Console

import services
from shared.settings import Settings, problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from shared.messages import Document, Extraction
    from training.data.corpora import Example

out = Console()
err = Console(stderr=True)

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the embedded servers' files; BIOBRACKET_DATA else.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port of the HTTP interface; BIOBRACKET_HTTP_PORT else.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
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


def warn(message: str) -> None:
    err.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def warn_trimmed(examples: Sequence[Example]) -> None:
    if trimmed := sum(example.trimmed for example in examples):
        warn(f"{trimmed} mentions of the corpus have white space at their ends, which was trimmed")


def fail(message: str) -> NoReturn:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Errors that name a setting and its remedy are printed without a traceback."""
    from services.line_file import LineFileError
    from shared.errors import ExemplarError, SelectorError
    from shared.model.base_model import BaseModelError
    from shared.selection.calibration import CalibrationError
    from training.config import ConfigError, TrainingError
    from training.data.corpora import CorpusError
    from training.evaluation.predictions import PredictionsError
    from training.evaluation.reports import ReportError

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
        fail(str(error))


def progress_bar() -> Progress:
    """A progress bar on standard error, which leaves nothing behind."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


@contextmanager
def document_progress(documents: Sequence[Document], what: str) -> Iterator[Callable[[Extraction], None]]:
    """A progress bar, and what tells it of a document that is done."""
    with progress_bar() as progress:
        task = progress.add_task(what, total=sum(len(d.text) for d in documents))
        yield lambda e: progress.advance(task, e.counts.characters)


def load_settings(data: Path | None = None, port: int | None = None) -> Settings:
    given: dict[str, Any] = {"data": data, "http_port": port}
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except (SettingsError, ValidationError) as error:
        fail(problem(error) or "settings: cannot be read; see README.md")


def attached_settings(data: Path | None) -> Settings:
    from services.embedded.runtime import attached

    return attached(load_settings(data))


def configs() -> Iterator[BaseSettings]:
    """The shared settings, then those of each service that has some."""
    yield load_settings()
    for module in sorted(m.name for m in pkgutil.iter_modules(services.__path__) if m.ispkg):
        if importlib.util.find_spec(f"services.{module}.config") is None:
            continue
        config = importlib.import_module(f"services.{module}.config")
        for value in vars(config).values():
            if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == config.__name__:
                yield value()
