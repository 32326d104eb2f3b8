"""``biobracket keys``: the API keys of HTTP callers."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import JsonOption, err, fail, out

if TYPE_CHECKING:
    from services.query.auth.scopes import Scope

keys = typer.Typer(
    help="Make, list and revoke API keys in the file BIOBRACKET_QUERY_API_KEYS; running services follow it.",
    no_args_is_help=True,
)


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Caller that will use the key: letters, digits and . _ -")],
    scopes: Annotated[str, typer.Option("--scopes", help="Comma-separated: read, extract, feedback, admin.")],
    days: Annotated[int, typer.Option("--days", min=0, max=36500, help="Days until it expires; 0: never.")] = 365,
) -> None:
    """Make a key and print it, this once: only a hash of it is kept."""
    from services.query.auth import key_file
    from services.query.auth.callers import AuthenticationError

    path = _path()
    asked = _scopes(scopes)
    try:
        key, made = key_file.create(path, name, asked, days, datetime.now(UTC))
    except AuthenticationError as error:
        fail(str(error))
    except OSError as error:
        fail(f"keys: {path} cannot be written ({error.strerror}); check BIOBRACKET_QUERY_API_KEYS")
    until = "for good" if made.expires is None else f"until {made.expires:%Y-%m-%d}"
    err.print(
        f"key {made.id} of {made.caller}, {', '.join(made.scopes)}, valid {until}; it is not shown again:",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    sys.stdout.write(f"{key}\n")


@keys.command("list")
def list_keys(as_json: JsonOption = False) -> None:
    """Show all keys by id, never the keys themselves."""
    from rich.table import Table

    from services.query.auth import key_file
    from services.query.auth.callers import AuthenticationError

    try:
        found = key_file.listed(_path())
    except AuthenticationError as error:
        fail(str(error))
    now = datetime.now(UTC)
    if as_json:
        rows = [key.model_dump(mode="json", exclude={"salt", "sha256"}) | {"state": key.state(now)} for key in found]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table("id", "caller", "scopes", "created", "expires", "state", box=None)
    for key in found:
        expires = "never" if key.expires is None else f"{key.expires:%Y-%m-%d}"
        table.add_row(key.id, key.caller, ",".join(key.scopes), f"{key.created:%Y-%m-%d}", expires, key.state(now))
    out.print(table)


@keys.command("revoke")
def revoke_key(identifier: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as listed.")]) -> None:
    """Revoke a key; running services refuse it from the next request on."""
    from services.query.auth import key_file
    from services.query.auth.callers import AuthenticationError

    path = _path()
    try:
        key = key_file.revoke(path, identifier, datetime.now(UTC))
    except AuthenticationError as error:
        fail(str(error))
    except OSError as error:
        fail(f"keys: {path} cannot be written ({error.strerror}); check BIOBRACKET_QUERY_API_KEYS")
    out.print(f"key {key.id} of {key.caller} is revoked", highlight=False)


def _path() -> Path:
    from services.query.config import QueryConfig

    path = QueryConfig().api_keys
    if path is None:
        fail("BIOBRACKET_QUERY_API_KEYS: is not set; let it name the file of keys, for commands and services alike")
    return path


def _scopes(given: str) -> list[Scope]:
    from services.query.auth.scopes import SCOPES

    words = {word.strip() for word in given.split(",") if word.strip()}
    if not words or words - set(SCOPES):
        fail(f"scopes: names none or an unknown one; give some of {', '.join(SCOPES)}, parted by commas")
    return [scope for scope in SCOPES if scope in words]
