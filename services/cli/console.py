"""Shared by all commands: consoles, errors, progress, settings and options. Imports no command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from shared.messages import Document, Extraction

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


def fail(message: str) -> NoReturn:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print errors that name a setting and its remedy without a traceback, and exit."""
    from services.line_file import LineFileError
    from shared.errors import ExemplarError, SelectorError
    from shared.model.base_model import BaseModelError
    from shared.selection.calibration import CalibrationError
    from training.config import ConfigError, TrainingError
    from training.data.corpora import CorpusError
    from training.evaluation.predictions import PredictionsError
    from training.evaluation.reports import ReportError

    expected = (
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
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0])
        fail(f"{name}: {first['msg'].lower()}; set BIOBRACKET_{name.upper()} as described by `biobracket settings`")


def attached_settings(data: Path | None) -> Settings:
    from services.embedded.runtime import attached

    return attached(load_settings(data))
