"""The adapter folder: where it is, the model with it, and the revision that names what that makes of a text."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from shared.settings import Settings

SCHEME = "per-type.v1"
CALIBRATION_FILE = "calibration.json"
_PROJECT = Path(__file__).resolve().parent.parent


def adapter_folder(settings: Settings) -> Path | None:
    """The folder that ``settings.adapter`` names; none where the setting is empty.

    FileNotFoundError, naming the setting, where no such folder holds an adapter.
    """
    return _folder("adapter", settings.adapter, "generator", "serve the base model alone")


def selector_folder(settings: Settings) -> Path | None:
    """The folder that ``settings.selector`` names, as :func:`adapter_folder` finds it."""
    return _folder("selector", settings.selector, "selector", "select by the generator's confidence alone")


def index_folder(selector: Path) -> Path:
    """Where a selector's folder has its exemplars, if it has any."""
    return selector / "index"


def _folder(setting: str, value: str, made_by: str, without: str) -> Path | None:
    if not value:
        return None
    given = Path(value).expanduser()
    for folder in (given, _PROJECT / given):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{setting}: no adapter_config.json in {given}; set BIOBRACKET_{setting.upper()} to a folder made by "
        f"`biobracket train {made_by}`, or to nothing to {without}"
    )


def load_merged(settings: Settings, folder: Path | None, dtype: str = "auto") -> Any:
    """The base model with an adapter merged into its weights, ready to be run with packed attention.

    On the GPU where there is one. ``dtype``: `bfloat16`, `float32`, or `auto`: bfloat16 where that is native.
    """
    import torch

    from shared.base_model import load_base
    from shared.packing import use_packed_attention

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        cpu = torch.cpu.get_capabilities()
        native = device == "cuda" or cpu.get("amx_bf16") or cpu.get("avx512_bf16")
        dtype = "bfloat16" if native else "float32"
    model = load_base(settings, torch.float32)
    if folder is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    model = use_packed_attention(model).to(device=device, dtype=getattr(torch, dtype)).eval()
    return model.requires_grad_(False)


def model_revision(settings: Settings) -> str:
    """Sixteen hex digits that change when the base, adapter, selector, calibration or tagging scheme does."""
    return _revision(settings.base_model, adapter_folder(settings), selector_folder(settings))


@lru_cache(maxsize=8)
def _revision(base_model: str, *folders: Path | None) -> str:
    digest = hashlib.sha256(f"{SCHEME}\x1f{base_model}".encode())
    for file in (file for folder in folders if folder for file in sorted(folder.glob("*"))):
        # Not the manifest of its training: it changes nothing that the model says.
        if file.suffix == ".safetensors" or file.name in {"adapter_config.json", "selector.json", CALIBRATION_FILE}:
            digest.update(file.name.encode() + b"\x1f" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
