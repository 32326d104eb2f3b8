"""The adapter folder: where it is, and the revision that names what it makes of a text."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from shared.settings import Settings

SCHEME = "per-type.v1"
CALIBRATION_FILE = "calibration.json"
_PROJECT = Path(__file__).resolve().parent.parent


def adapter_folder(settings: Settings) -> Path | None:
    """The folder that ``settings.adapter`` names; none where the setting is empty.

    FileNotFoundError, naming the setting, where no such folder holds an adapter.
    """
    if not settings.adapter:
        return None
    given = Path(settings.adapter).expanduser()
    for folder in (given, _PROJECT / given):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"adapter: no adapter_config.json in {given}; set BIOBRACKET_ADAPTER to a folder made by "
        "`biobracket train generator`, or to nothing to serve the base model alone"
    )


def model_revision(settings: Settings) -> str:
    """Sixteen hex digits that change when the base, the adapter, its calibration or the tagging scheme does."""
    return _revision(settings.base_model, adapter_folder(settings))


@lru_cache(maxsize=8)
def _revision(base_model: str, folder: Path | None) -> str:
    digest = hashlib.sha256(f"{SCHEME}\x1f{base_model}".encode())
    for file in sorted(folder.glob("*")) if folder else ():
        # Not the manifest of its training: it changes nothing that the model says.
        if file.suffix == ".safetensors" or file.name in {"adapter_config.json", CALIBRATION_FILE}:
            digest.update(file.name.encode() + b"\x1f" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
