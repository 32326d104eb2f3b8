"""Shared by all commands: consoles, errors, progress, settings and options. Imports no command."""

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
    Path | None, typer.Option("--data", help="Folder of the embedded servers' files; default BIOBRACKET_DATA.")
]
PortOption = Annotated[
    int | None,
    typer.Option("--port", min=0, max=65535, help="Port of the HTTP interface; default BIOBRACKET_HTTP_PORT."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
LinesOption = Annotated[
    Path | None,
    typer.Option(
        "--lines",
        help="A file that caches the generator's output for later runs of the same generator. It holds text.",
    ),
]
CorporaOption = Annotated[
    str, typer.Option("--corpora", help="Corpora, each optionally with a number of texts: `genia=600,bc5cdr`.")
]
SplitOption = Annotated[str, typer.Option("--split", help="File of each corpus; never the one that is reported.")]
LimitOption = Annotated[
    int, typer.Option("--limit", min=0, help="Take only this many texts, from the start; 0 takes all.")
]


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
    """Print errors that name a setting and its remedy without a traceback, and exit."""
    from services.line_file import LineFileError
    from shared.errors import AdapterError, DigestError, ExemplarError, SelectorError
    from shared.model.base_model import BaseModelError
    from shared.selection.calibration import CalibrationError
    from training.config import ConfigError, TrainingError
    from training.data.corpora import CorpusError
    from training.evaluation.predictions import PredictionsError
    from training.evaluation.reports import ReportError

    expected = (
        AdapterError,
        BaseModelError,
        CalibrationError,
        ConfigError,
        CorpusError,
        DigestError,
        ExemplarError,
        LineFileError,
        PredictionsError,
        ReportError,
        SelectorError,
        TrainingError,
    )
    try:
        yield
    except (*expected, FileNotFoundError) as error:
        fail(str(error))


def progress_bar() -> Progress:
    """A transient progress bar on standard error."""
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
def document_progress(documents: Sequence[Document], title: str) -> Iterator[Callable[[Extraction], None]]:
    """A progress bar over the characters of documents; call the result with each finished extraction."""
    with progress_bar() as progress:
        task = progress.add_task(title, total=sum(len(d.text) for d in documents))
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


def classes() -> Iterator[type[BaseSettings]]:
    """The class of the shared settings, then those of each service that has some."""
    yield Settings
    for module in sorted(m.name for m in pkgutil.iter_modules(services.__path__) if m.ispkg):
        if importlib.util.find_spec(f"services.{module}.config") is None:
            continue
        config = importlib.import_module(f"services.{module}.config")
        for value in vars(config).values():
            if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == config.__name__:
                yield value


def configs() -> Iterator[BaseSettings]:
    """The settings in force, in the order of :func:`classes`."""
    for config in classes():
        yield load_settings() if config is Settings else config()
