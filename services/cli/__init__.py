"""The ``biobracket`` command; each module of this package holds a family of commands."""

from __future__ import annotations

from typing import Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from typer.core import TyperGroup

from services.cli import (
    access,
    convert,
    dead_letters,
    demo,
    encryption,
    evaluate,
    extract,
    forget,
    get,
    index,
    keys,
    plan,
    produce,
    recovery,
    schemas,
    settings,
    status,
    train,
    up,
)
from services.cli.console import fail
from shared.settings import problem


class _Commands(TyperGroup):
    """All commands: a setting that cannot be read is one line, wherever it is read."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (SettingsError, ValidationError) as error:
            if (said := problem(error)) is None:
                raise
            fail(said)


cli = typer.Typer(
    name="biobracket",
    cls=_Commands,
    help="Streaming, bilingual (Chinese and English), nested biomedical named-entity recognition.",
    no_args_is_help=True,
    add_completion=False,
    # Pretty tracebacks print local variables, which hold clinical text.
    pretty_exceptions_enable=False,
)
cli.add_typer(train.train, name="train")
cli.add_typer(index.index, name="index")
cli.add_typer(access.access, name="access")
cli.add_typer(keys.keys, name="keys")
cli.add_typer(encryption.encryption, name="encryption")
cli.add_typer(dead_letters.dead_letters, name="dead-letters")
cli.add_typer(recovery.audit, name="audit")
for command in (
    evaluate.evaluate,
    train.candidates,
    train.self_label,
    convert.convert,
    up.up,
    demo.demo,
    produce.produce,
    get.get,
    forget.forget,
    extract.extract,
    status.status,
    recovery.rebuild,
):
    cli.command()(command)
cli.command(name="plan")(plan.show_plan)
cli.command(name="settings")(settings.show_settings)
cli.command(name="schemas")(schemas.write_schemas)


def main() -> None:
    """Entry point of the command."""
    cli()
