"""The tagging scheme that an adapter was trained for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

from shared.errors import AdapterError

Scheme = Literal["labelled.v1", "per-type.v1"]
SCHEME_FILE = "scheme.json"


def scheme_of(folder: Path | None) -> Scheme:
    """The scheme of an adapter's folder; ``per-type.v1`` where no file says it, as in older adapters.

    AdapterError where the file is none, or names a scheme that this version does not know.
    """
    file = None if folder is None else folder / SCHEME_FILE
    if file is None or not file.exists():
        return "per-type.v1"
    try:
        scheme = json.loads(file.read_text(encoding="utf-8"))["scheme"]
    except (OSError, ValueError, KeyError, TypeError):
        raise AdapterError(
            f"adapter: {file} does not name a scheme; copy the adapter again, with all its files"
        ) from None
    for known in get_args(Scheme):
        if scheme == known:
            return known  # type: ignore[no-any-return]
    raise AdapterError(
        f"adapter: {file} names the scheme `{scheme}`; this version reads {' and '.join(get_args(Scheme))}: set "
        "BIOBRACKET_ADAPTER to another adapter, or install a version of biobracket that knows the scheme"
    )


def write_scheme(folder: Path, scheme: Scheme) -> None:
    """Writes what :func:`scheme_of` reads."""
    (folder / SCHEME_FILE).write_text(json.dumps({"scheme": scheme}) + "\n", encoding="utf-8")
