"""The command that makes corpora: ``biobracket convert``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from services.cli.console import clear_errors, err, fail, out, progress_bar
from shared.messages import Lang
from training.data.formats import Format
from training.data.formats.common import Discontinuous, Documents

if TYPE_CHECKING:
    from collections import Counter

    from training.data.formats.common import Reading
    from training.data.formats.conversion import Summary


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A file; for brat a folder, for bioc a file or a folder.")
    ],
    format_: Annotated[Format, typer.Option("--format", help="What it is in.")],
    to: Annotated[Path, typer.Option("--out", help="File to write, such as corpora/mine/train.jsonl.")],
    lang: Annotated[
        Lang | None, typer.Option("--lang", help="Language of all texts; detected for each when absent.")
    ] = None,
    types: Annotated[
        str | None, typer.Option("--types", help="Labels of the corpus to keep, comma separated; all when absent.")
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="A label of the corpus and the type's key to write for it, `label=key`; repeated."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out and count what is wrong, instead of stopping at it.")
    ] = False,
    discontinuous: Annotated[
        Discontinuous,
        typer.Option("--discontinuous", help="Leave out discontinuous mentions, or take the span that covers them."),
    ] = "skip",
    type_infon: Annotated[
        str, typer.Option("--type-infon", help="Of bioc: key of the infon that holds an annotation's label.")
    ] = "type",
    column: Annotated[
        int | None, typer.Option("--column", min=2, help="Of conll: column of the tags, from 1; the last when absent.")
    ] = None,
    documents: Annotated[
        Documents,
        typer.Option("--documents", help="Of conll: a text for each sentence, or for each -DOCSTART- line."),
    ] = "sentence",
) -> None:
    """Convert an annotated corpus to the format that `train` and `evaluate` read."""
    with clear_errors():
        from training.data.formats.common import Reading
        from training.data.formats.conversion import convert as run

        labels = {label.strip() for label in (types or "").split(",")} - {""}
        keys = dict(part.rpartition("=")[::2] for part in mapping or ())
        if "" in keys or "" in keys.values():
            fail("map: give a label and a type's key each time, as --map Disease=disease")
        files = source.rglob("*") if source.is_dir() else [source]
        with progress_bar() as progress:
            task = progress.add_task(source.name, total=sum(f.stat().st_size for f in files if f.is_file()))
            reading = Reading(
                discontinuous=discontinuous,
                skip_bad=skip_bad,
                type_infon=type_infon,
                column=column,
                documents=documents,
                advance=lambda size: progress.advance(task, size),
            )
            summary = run(source, format_, to, reading, lang, labels, keys)
    _print_summary(summary, reading, to)
    for label in sorted((labels | keys.keys()) - summary.labels):
        err.print(f"warning: the corpus has no label {label}", style="yellow", markup=False, highlight=False)


def _print_summary(summary: Summary, reading: Reading, to: Path) -> None:
    from shared.entity_types import key_of

    table = Table("label", "mentions", "type")
    table.columns[1].justify = "right"
    keys = {label: key_of(label) for label in summary.mentions}
    for label, mentions in summary.mentions.most_common():
        table.add_row(Text(label), str(mentions), keys[label] or "none: needs --map")
    out.print(table)
    languages = ", ".join(f"{texts} {lang}" for lang, texts in sorted(summary.texts.items()))
    written = f"{summary.texts.total()} texts ({languages}), {summary.mentions.total()} mentions in {to}"
    out.print(written, markup=False, highlight=False, soft_wrap=True)
    _print_counts("left out", reading.left_out)
    _print_counts("noted", reading.notes)
    if None in keys.values():
        given = [shlex.quote(f"{label}=KEY") for label, key in sorted(keys.items()) if key is None]
        told = " --map ".join([f"--corpus {shlex.quote(str(to.parent))} --split {shlex.quote(to.stem)}", *given])
        out.print(f"next: biobracket evaluate {told}", markup=False, highlight=False, soft_wrap=True)


def _print_counts(what: str, counts: Counter[str]) -> None:
    for reason, number in (+counts).most_common():
        out.print(f"{what}: {number} × {reason}", markup=False, highlight=False, soft_wrap=True)
