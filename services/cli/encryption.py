"""``biobracket encryption``: the keys that values in Redis are encrypted with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import DataOption, attached_settings, fail, load_settings, out, progress_bar

encryption = typer.Typer(
    help="Make and change the keys in the file BIOBRACKET_ENCRYPTION_KEYS; running services follow it.",
    no_args_is_help=True,
)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of a key, as listed.")]


@encryption.command("create")
def create_file() -> None:
    """Make the file, with a first key of values and the key of names. Keep a copy: without it all is lost."""
    from shared.backends import vault

    with _file() as path:
        id_ = vault.create(path)
    out.print(f"{path} has the key {id_}; copy it to where backups of Redis are not", highlight=False, soft_wrap=True)


@encryption.command("add")
def add_key() -> None:
    """Add a key. Once every node has the file, `use` makes it the current one."""
    from shared.backends import vault

    with _file() as path:
        id_ = vault.add(path)
    out.print(f"key {id_} is in the file, and not used yet", highlight=False)


@encryption.command("use")
def use_key(identifier: IdArgument) -> None:
    """Make a key the current one: from the next value on."""
    from shared.backends import vault

    with _file() as path:
        vault.use(path, identifier)
    out.print(f"key {identifier} is the current one; `biobracket encryption rotate` seals older values under it")


@encryption.command("list")
def list_keys() -> None:
    """Show the ids of the keys, never the keys themselves."""
    from shared.backends import vault

    with _file() as path:
        found = vault.parse(path.read_bytes())
        print_name = vault.KeyedVault(path).fingerprint
    for id_ in found.keys:
        out.print(f"{id_}  current" if id_ == found.current else id_, highlight=False)
    out.print(f"names: fingerprint {print_name}", highlight=False)


@encryption.command("rotate")
def rotate(data: DataOption = None) -> None:
    """Seal every value in Redis under the current key, beside the running application; again if interrupted."""
    from shared.backends.resealing import reseal
    from shared.errors import StoreError

    with _file():
        try:
            with progress_bar() as progress:
                task = progress.add_task("sealing", total=None)
                counts = reseal(attached_settings(data), lambda done: progress.update(task, completed=done))
        except StoreError as error:
            fail(str(error))
    out.print(
        f"{counts.sealed:,} values sealed under the current key, {counts.others:,} were already, "
        f"{counts.unreadable:,} cannot be opened",
        highlight=False,
    )
    if counts.unreadable:
        raise typer.Exit(1)


@encryption.command("remove")
def remove_key(identifier: IdArgument, data: DataOption = None) -> None:
    """Remove a key that no value in Redis is sealed under any more."""
    from shared.backends import vault
    from shared.backends.resealing import used
    from shared.errors import StoreError

    with _file() as path:
        try:
            left = used(attached_settings(data))[identifier]
        except StoreError as error:
            fail(str(error))
        if left:
            fail(f"id: {left:,} values in Redis are sealed under this key; run `biobracket encryption rotate` first")
        vault.remove(path, identifier)
    out.print(f"key {identifier} is removed", highlight=False)


@contextmanager
def _file() -> Iterator[Path]:
    """The file of keys; what goes wrong with it is one line."""
    from shared.backends.vault import SealError

    path = load_settings().encryption_keys
    if path is None:
        fail("BIOBRACKET_ENCRYPTION_KEYS: is not set; let it name the file of keys, for commands and services alike")
    try:
        yield path
    except SealError as error:
        fail(str(error))
    except OSError as error:
        fail(f"encryption: {path} cannot be used ({error.strerror}); check BIOBRACKET_ENCRYPTION_KEYS")
