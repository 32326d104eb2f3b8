"""The ``biobracket`` command; each module of this package holds a family of commands."""

from __future__ import annotations

import typer

from services.cli import convert, evaluate, index, settings, stream, train

cli = typer.Typer(
    name="biobracket",
    help="Streaming, bilingual (Chinese and English), nested biomedical named-entity recognition.",
    no_args_is_help=True,
    add_completion=False,
    # Pretty tracebacks print local variables, which hold clinical text.
    pretty_exceptions_enable=False,
)
cli.add_typer(train.train, name="train")
cli.add_typer(index.index, name="index")
for command in (
    evaluate.evaluate,
    train.candidates,
    convert.convert,
    stream.up,
    stream.demo,
    stream.produce,
    stream.get,
    stream.extract,
    stream.status,
):
    cli.command()(command)
cli.command(name="settings")(settings.show_settings)


def main() -> None:
    """Entry point of the command."""
    cli()
