"""The command that converts corpora: ``biobracket convert``."""

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
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A file; for brat a folder; for bioc either.")],
    format_: Annotated[Format, typer.Option("--format", help="Format of the input.")],
    to: Annotated[Path, typer.Option("--out", help="File to write, such as corpora/mine/train.jsonl.")],
    lang: Annotated[
        Lang | None, typer.Option("--lang", help="Language of all texts; default: detected for each.")
    ] = None,
    types: Annotated[
        str | None, typer.Option("--types", help="Labels of the corpus to keep, comma-separated; default: all.")
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", help="Write a label of the corpus as the key of a type, `label=key`; repeatable."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count invalid input instead of stopping.")
    ] = False,
    discontinuous: Annotated[
        Discontinuous,
        typer.Option("--discontinuous", help="Skip discontinuous mentions, or take the span that covers them."),
    ] = "skip",
    type_infon: Annotated[
        str, typer.Option("--type-infon", help="bioc: key of the infon with an annotation's label.")
    ] = "type",
    column: Annotated[
        int | None, typer.Option("--column", min=2, help="conll: column of the tags, from 1; default: the last.")
    ] = None,
    documents: Annotated[
        Documents,
        typer.Option("--documents", help="conll: one text per sentence, or per -DOCSTART- line."),
    ] = "sentence",
) -> None:
    """Convert an annotated corpus to the format that `train` and `evaluate` read."""
    with clear_errors():
        from training.data.formats.common import Reading
        from training.data.formats.conversion import convert as run

        labels = {label.strip() for label in (types or "").split(",")} - {""}
        keys = dict(part.rpartition("=")[::2] for part in mapping or ())
        if "" in keys or "" in keys.values():
            fail("map: give a label and the key of a type each time, as in --map Disease=disease")
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
        table.add_row(Text(label), str(mentions), keys[label] or "unknown: needs --map")
    out.print(table)
    languages = ", ".join(f"{texts} {lang}" for lang, texts in sorted(summary.texts.items()))
    written = f"{summary.texts.total()} texts ({languages}), {summary.mentions.total()} mentions in {to}"
    out.print(written, markup=False, highlight=False, soft_wrap=True)
    _print_counts("left out", reading.left_out)
    _print_counts("note", reading.notes)
    if None in keys.values():
        given = [shlex.quote(f"{label}=KEY") for label, key in sorted(keys.items()) if key is None]
        options = " --map ".join([f"--corpus {shlex.quote(str(to.parent))} --split {shlex.quote(to.stem)}", *given])
        out.print(f"next: biobracket evaluate {options}", markup=False, highlight=False, soft_wrap=True)


def _print_counts(what: str, counts: Counter[str]) -> None:
    for reason, number in (+counts).most_common():
        out.print(f"{what}: {number} × {reason}", markup=False, highlight=False, soft_wrap=True)
