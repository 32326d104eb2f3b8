"""The revision of a model: a short digest of everything that determines its output."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from shared.model.folders import adapter_folder
from shared.model.scheme import SCHEME_FILE
from shared.settings import Settings

_BEGIN = "per-type.v1"  # a scheme of old; it stays, as any other word would change every digest


def generator_revision(settings: Settings) -> str:
    """Sixteen hex digits that change with the base, the adapter or the tagging scheme."""
    return digest(settings.base_model, *weights(adapter_folder(settings)))


def weights(folder: Path | None, *also: str) -> list[Path]:
    """The files of a folder that determine a model's output, and those named ``also``, where they exist.

    Its card and the manifest of its training are not among them.
    """
    names = {"adapter_config.json", SCHEME_FILE, *also}
    files = sorted(folder.glob("*")) if folder is not None else []
    return [file for file in files if file.suffix == ".safetensors" or file.name in names]


@lru_cache(maxsize=8)
def digest(base_model: str, *files: Path) -> str:
    """Sixteen hex digits that change with the base, and the name or content of any file."""
    hashed = hashlib.sha256(f"{_BEGIN}\x1f{base_model}".encode())
    for file in files:
        hashed.update(file.name.encode() + b"\x1f" + hashlib.sha256(file.read_bytes()).digest())
    return hashed.hexdigest()[:16]
