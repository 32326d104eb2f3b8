"""``biobracket get``: the stored result of a document."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.console import DataOption, JsonOption, attached_settings, fail, out, warn

if TYPE_CHECKING:
    pass


def get(
    document_id: Annotated[str, typer.Argument(metavar="ID", help="Identifier of the document.")],
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Show the entities of a document that came in through Kafka."""
    from services.cli.rendering import entities_table
    from shared.backends.result_store import ResultStore
    from shared.errors import StoreError
    from shared.messages import TEXT_NOT_STORED

    try:
        store = ResultStore.from_settings(attached_settings(data))
        extraction = store.get(document_id)
        store.close()
    except StoreError as error:
        fail(str(error))
    if extraction is None:
        fail(
            "id: no result is stored for this document; check the identifier; a document that was just sent takes a "
            "moment, and one that cannot be processed is in the dead-letters topic"
        )
    if TEXT_NOT_STORED in extraction.warnings:
        warn("the store keeps no text (BIOBRACKET_STORE_TEXT): mentions are shown by their offsets alone")
    if as_json:
        sys.stdout.write(extraction.model_dump_json(indent=2) + "\n")
    else:
        out.print(entities_table(extraction) if extraction.entities else "(no entities)")
