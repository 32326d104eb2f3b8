"""Commands for the selector's exemplars: ``biobracket index build``, ``info``, ``check``, ``add`` and ``remove``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from services.cli.console import CorporaOption, SplitOption, clear_errors, fail, out, progress_bar
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.selection.exemplars.index import ExemplarIndex

index = typer.Typer(
    help="Manage the labelled exemplars that the selector compares candidates with.", no_args_is_help=True
)

TextsOption = Annotated[
    bool, typer.Option("--texts/--no-texts", help="Whether exemplars store the words of their mentions.")
]
CandidatesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--candidates",
        help="A file from `biobracket candidates`, or a folder of them: only its texts are used, and the rejected "
        "exemplars are the generator's false positives; repeatable. Default: random spans are the rejected exemplars.",
    ),
]
IndexOption = Annotated[Path | None, typer.Option("--index", help="Folder of the index; default: the selector's.")]


@index.command("build")
def build(
    corpora: CorporaOption = "genia,cmeee_v2,bc5cdr",
    split: SplitOption = "train",
    candidates: CandidatesOption = None,
    kind: Annotated[
        str, typer.Option("--kind", help="`flat` is exact; `ivf` and `hnsw` are approximate, for millions.")
    ] = "flat",
    texts: TextsOption = True,
    folder: IndexOption = None,
) -> None:
    """Build the index of BIOBRACKET_SELECTOR from corpora: their mentions, and spans that are not mentions."""
    if kind not in ("flat", "ivf", "hnsw"):
        fail(f"kind: `{kind}` is not one of flat, ivf, hnsw")
    with clear_errors():
        from shared.runtime.cpus import cpus, use_threads
        from shared.selection.exemplars.index import ExemplarIndex
        from shared.selection.span_encoder import encoder_revision

        use_threads(cpus())
        settings = Settings()
        selector = _selector(settings)
        revision = encoder_revision(settings, selector)
        batches, size = _exemplars(settings, selector, corpora, split, candidates or (), texts)
        with progress_bar() as progress:
            task = progress.add_task("exemplars", total=None)
            manifest = ExemplarIndex.build(
                _place(folder, selector),
                batches,
                kind=kind,  # type: ignore[arg-type]  # checked above
                encoder=revision,
                dim=size,
                progress=lambda done: progress.update(task, completed=done),
            )
    count = sum(each.count for each in manifest.types.values())
    out.print(
        f"{count} exemplars, {sum(each.accepted for each in manifest.types.values())} of them accepted; next: "
        f"BIOBRACKET_SELECTOR={selector} biobracket train calibration",
        highlight=False,
    )


@index.command("info")
def info(folder: IndexOption = None) -> None:
    """Show how many exemplars of each type there are."""
    with clear_errors():
        loaded, _ = _loaded(folder)
        table = Table(box=None, pad_edge=False)
        for column in ("type", "accepted", "rejected"):
            table.add_column(column, justify="left" if column == "type" else "right")
        for type_, (accepted, rejected) in sorted(loaded.counts().items()):
            table.add_row(type_, str(accepted), str(rejected))
        out.print(table)
        manifest = loaded.manifest
        about = f"{manifest.kind}, {manifest.dim} dimensions, encoder {manifest.encoder}"
        out.print(f"{len(loaded)} exemplars, {about}", highlight=False)


@index.command("check")
def check(folder: IndexOption = None) -> None:
    """Check that all files are intact and were made with the encoder of BIOBRACKET_SELECTOR."""
    with clear_errors():
        from shared.selection.exemplars.index import ExemplarIndex
        from shared.selection.span_encoder import encoder_revision

        settings = Settings()
        selector = _selector(settings)
        place = _place(folder, selector)
        found = ExemplarIndex.load(place, encoder=encoder_revision(settings, selector))
        for _ in found.items():  # raises on a line that cannot be read
            pass
    out.print(f"{place}: {len(found)} exemplars, all intact", highlight=False)


@index.command("add")
def add(
    corpora: CorporaOption,
    split: SplitOption = "train",
    candidates: CandidatesOption = None,
    texts: TextsOption = True,
    folder: IndexOption = None,
) -> None:
    """Add exemplars from more corpora; existing ones with the same ids are replaced."""
    with clear_errors():
        loaded, place = _loaded(folder)
        settings = Settings()
        before = len(loaded)
        for vectors, exemplars in _exemplars(settings, _selector(settings), corpora, split, candidates or (), texts)[0]:
            loaded.add(vectors, exemplars)
        loaded.save(place)
    out.print(f"{len(loaded) - before} exemplars added; {len(loaded)} in total", highlight=False)


@index.command("remove")
def remove(
    ids: Annotated[list[str], typer.Argument(help="Ids of exemplars, `<corpus>:<text>:<start>-<end>:<type>`.")],
    folder: IndexOption = None,
) -> None:
    """Remove exemplars."""
    with clear_errors():
        loaded, place = _loaded(folder)
        removed = loaded.remove(ids)
        if removed:
            loaded.save(place)
    out.print(f"{removed} exemplars removed; {len(loaded)} left", highlight=False)


def _selector(settings: Settings) -> Path:
    from shared.selection.selector_folder import selector_folder

    folder = selector_folder(settings)
    if folder is None:
        fail("selector: none is set; set BIOBRACKET_SELECTOR to the one that the exemplars are for")
    return folder


def _place(given: Path | None, selector: Path) -> Path:
    from shared.selection.selector_folder import index_folder

    return given or index_folder(selector)


def _loaded(folder: Path | None) -> tuple[ExemplarIndex, Path]:
    from shared.selection.exemplars.index import ExemplarIndex

    settings = Settings()
    place = folder or _place(None, _selector(settings))
    return ExemplarIndex.load(place, encoder=None, cache=settings.cache), place


def _exemplars(
    settings: Settings, selector: Path, corpora: str, split: str, candidates: Sequence[Path], texts: bool
) -> tuple[Iterator[tuple[Any, Any]], int]:
    """Batches of vectors and exemplars from corpora, and the dimension of the vectors."""
    from services.pipeline.config import PipelineConfig
    from shared.model.base_model import load_tokenizer
    from shared.selection.span_encoder import SpanEncoder
    from shared.text.grammar import CopyTokens
    from training.data.candidates import wrong
    from training.data.corpora import read_all
    from training.selector.exemplars import of_corpus

    examples = read_all(corpora, split, settings)
    encoder = SpanEncoder.load(settings, selector)
    tokens = CopyTokens(load_tokenizer(settings))
    units = PipelineConfig().max_units
    mistakes = wrong(candidates) if candidates else None
    batches = (
        batch
        for name, given in examples.items()
        for batch in of_corpus(name, given, encoder, tokens, max_units=units, texts=texts, mistakes=mistakes)
    )
    return batches, encoder.size
