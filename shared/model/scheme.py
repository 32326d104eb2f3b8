"""The tagging scheme that an adapter was trained for: ``labelled.v1``, which its folder says."""

from __future__ import annotations

import json
from pathlib import Path

from shared.errors import AdapterError

SCHEME = "labelled.v1"
SCHEME_FILE = "scheme.json"


def check_scheme(folder: Path | None) -> None:
    """AdapterError unless an adapter's folder says that it is of :data:`SCHEME`. None, for no adapter, is right."""
    if folder is None:
        return
    file = folder / SCHEME_FILE
    remedy = "set BIOBRACKET_ADAPTER to another adapter, or install a version of biobracket that knows the scheme"
    if not file.exists():
        raise AdapterError(
            f"adapter: {folder} has no {SCHEME_FILE}, as the adapters of biobracket 0.2 (`per-type.v1`); this version "
            f"reads {SCHEME}: {remedy}"
        )
    try:
        scheme = json.loads(file.read_text(encoding="utf-8"))["scheme"]
    except (OSError, ValueError, KeyError, TypeError):
        raise AdapterError(
            f"adapter: {file} does not name a scheme; copy the adapter again, with all its files"
        ) from None
    if scheme != SCHEME:
        raise AdapterError(f"adapter: {file} names the scheme `{scheme}`; this version reads {SCHEME}: {remedy}")


def write_scheme(folder: Path) -> None:
    """Writes what :func:`check_scheme` reads."""
    (folder / SCHEME_FILE).write_text(json.dumps({"scheme": SCHEME}) + "\n", encoding="utf-8")
