"""The adapter folder: where it is, the model with it, and the revision that names what that makes of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import SelectorError
from shared.once import made_once
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.packing import Body

SCHEME = "per-type.v1"
CALIBRATION_FILE = "calibration.json"
SELECTOR_FILE = "selector.json"
AUTO = "auto"
Way = Literal["both-ways", "copy", "line"]
_PROJECT = Path(__file__).resolve().parent.parent
_OURS = _PROJECT / "models" / "gemma-3-270m-biobracket-selector"


class SelectorFile(BaseModel):
    """``selector.json``: what beside the weights makes a span encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1)
    types: tuple[str, ...] = Field(min_length=1, description="Entity type keys, in the order of the head's table.")
    size: int = Field(ge=1, description="Length of an embedding.")
    hidden: int = Field(ge=1, description="Width of the layers before it.")
    reading: Way = Field(default="both-ways", description="How the encoder reads a segment.")

    @classmethod
    def load(cls, folder: Path) -> SelectorFile:
        """That of a selector's folder. :class:`SelectorError` where there is none."""
        file = folder / SELECTOR_FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise SelectorError(
                f"selector: {file} cannot be read ({error.strerror}); set BIOBRACKET_SELECTOR to a folder made by "
                "`biobracket train selector`, or to nothing to select by the generator's confidence"
            ) from None
        except ValidationError as error:
            field = ".".join(str(part) for part in error.errors()[0]["loc"]) or "file"
            raise SelectorError(f"selector: {file}: {field} is not valid; train the selector again") from None


def adapter_folder(settings: Settings) -> Path | None:
    """The folder that ``settings.adapter`` names; none where the setting is empty.

    FileNotFoundError, naming the setting, where no such folder holds an adapter.
    """
    return _folder("adapter", settings.adapter, "generator", "serve the base model alone")


def selector_folder(settings: Settings) -> Path | None:
    """The folder that ``settings.selector`` names, as :func:`adapter_folder` finds it; none where there is none."""
    if settings.selector == AUTO:
        return _OURS if (_OURS / _calibration_name(settings)).is_file() else None
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
    if device == "cpu" and dtype == "bfloat16":
        _use_exact_gelu(model)
    return model.requires_grad_(False)


def load_body(
    settings: Settings, folder: Path | None, revision: str, dtype: str, example: Callable[[Body], None]
) -> Body:
    """The base model with an adapter merged, for inference.

    ``dtype``: see :func:`load_merged`, or `int8`, which `auto` is as well on a CPU that multiplies such numbers and for
    a base that can be had in them. That is made once, from what ``example`` does with the model, and kept in the cache
    folder under ``revision``, that of what the base is merged with. ValueError where `int8` cannot be.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    from shared.base_model import base_folder
    from shared.int8 import FORMAT, Int8Body, native, quantised, supports
    from shared.packing import Packed

    base = base_folder(settings)
    config = AutoConfig.from_pretrained(base)
    possible = not torch.cuda.is_available() and supports(config)
    if dtype == "int8" and not possible:
        raise ValueError("dtype: int8 is for Gemma 3 on a CPU; set it to auto")
    if dtype != "int8" and not (dtype == "auto" and possible and native()):
        return Packed(load_merged(settings, folder, dtype))

    def make(file: Path) -> None:
        packed = Packed(load_merged(settings, folder))
        save_file(quantised(packed, lambda: example(packed)), file)

    file = settings.cache / f"int8-{FORMAT}-{revision}-{_files(Path(base))}.safetensors"
    return Int8Body(config, load_file(made_once(file, make)))


def _files(folder: Path) -> str:
    """Eight hex digits that change when a base's files do; a hub id has none here."""
    stats = [(file.name, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    told = ",".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in stats)
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _use_exact_gelu(model: Any) -> None:
    """GELU itself for its approximation by a tangent, in place: on a CPU it is four times as fast, and in bfloat16 the
    two differ by no more than rounding does (relative 0.0013 each).
    """
    from torch import nn
    from transformers.activations import GELUTanh

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GELUTanh):
                setattr(module, name, nn.GELU())


def calibration_file(settings: Settings) -> Path | None:
    """Where the calibration of the settings lies, or would: beside the selector, one for each generator that it was
    fitted to; without a selector beside the adapter; none where there is neither.
    """
    selector, adapter = selector_folder(settings), adapter_folder(settings)
    if selector is not None:
        return selector / _calibration_name(settings)
    return adapter / CALIBRATION_FILE if adapter is not None else None


def _calibration_name(settings: Settings) -> str:
    return f"calibration-{generator_revision(settings)}.json"


def generator_revision(settings: Settings) -> str:
    """Sixteen hex digits that change when the base, adapter or tagging scheme does."""
    return _revision(settings.base_model, *_weights(adapter_folder(settings)))


def model_revision(settings: Settings) -> str:
    """Sixteen hex digits that change when the base, adapter, selector, calibration or tagging scheme does."""
    folders = [folder for folder in (adapter_folder(settings), selector_folder(settings)) if folder is not None]
    calibration = calibration_file(settings)
    files = [file for folder in folders for file in _weights(folder)]
    return _revision(settings.base_model, *files, *([calibration] if calibration and calibration.is_file() else []))


def _weights(folder: Path | None) -> list[Path]:
    """What of a folder decides what a model says; not the card and the manifest of its training."""
    names = {"adapter_config.json", SELECTOR_FILE}
    files = sorted(folder.glob("*")) if folder is not None else []
    return [file for file in files if file.suffix == ".safetensors" or file.name in names]


@lru_cache(maxsize=8)
def _revision(base_model: str, *files: Path) -> str:
    digest = hashlib.sha256(f"{SCHEME}\x1f{base_model}".encode())
    for file in files:
        digest.update(file.name.encode() + b"\x1f" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
