"""``biobracket extract``: one text over HTTP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.console import DataOption, JsonOption, attached_settings, fail, out, progress_bar
from services.cli.document_files import check_readable
from services.cli.http_client import http_client, unreachable
from shared.errors import DocumentError

if TYPE_CHECKING:
    pass


def extract(
    file: Annotated[str, typer.Argument(help="A text file; - is standard input.")],
    lang: Annotated[str | None, typer.Option("--lang", help="zh or en; default: detected.")] = None,
    types: Annotated[
        str | None, typer.Option("--types", help="Entity type keys, comma-separated; default: those of the language.")
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
) -> None:
    """Extract the entities of one text over HTTP and show them; nothing is stored."""
    import httpx

    from services.cli.document_files import read_text
    from services.cli.rendering import note
    from shared.messages import Extraction

    settings = attached_settings(data)
    check_readable([file])
    try:
        text = read_text(file)
    except DocumentError as error:
        fail(str(error))
    body: dict[str, Any] = {"text": text}
    if file != "-" and Path(file).name:
        body["id"] = Path(file).name
    if lang is not None:
        body["lang"] = lang
    if types is not None:
        body["types"] = [t.strip() for t in types.split(",") if t.strip()]
    with http_client(settings) as client, progress_bar() as progress:
        address = str(client.base_url).rstrip("/")
        progress.add_task("extracting", total=None)
        try:
            response = client.post("/v1/extract", json=body)
        except httpx.HTTPError as error:
            fail(unreachable(address, error))
    if response.status_code != 200:
        try:
            refusal = response.json()["error"]
            message = f"{refusal['field']}: {refusal['problem']}; {refusal['remedy']}"
        except (ValueError, KeyError, TypeError):
            message = f"http: status {response.status_code} from {address}; see its log"
        fail(message)
    if as_json:
        sys.stdout.write(json.dumps(response.json(), ensure_ascii=False, indent=2) + "\n")
    else:
        out.print(note(text, Extraction.model_validate_json(response.content)))
