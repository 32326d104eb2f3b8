"""Loads the base model with an adapter merged into it, ready for inference.

Heavy imports are inside the functions, so importing this module is cheap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.model.digests import check_sums
from shared.model.file_cache import build_once
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.model.body import Body

# Of a file of weights, which may have gigabytes: so many places, and bytes at each.
_SAMPLES = 64
_SAMPLE = 4096


def load_merged(settings: Settings, folder: Path | None, dtype: str = "auto") -> Any:
    """The base model with an adapter merged into its weights, set to packed attention, on the GPU if there is one.

    ``dtype``: `bfloat16`, `float32`, or `auto`: bfloat16 on a GPU, else the one that the CPU multiplies faster. Raises
    DigestError if the files of base or adapter are not those that their digests name.
    """
    import torch

    from shared.model import products
    from shared.model.attention import use_packed_attention
    from shared.model.base_model import load_base

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device == "cuda" else products.fastest_float(settings.cache)
    model = load_base(settings, torch.float32)
    if folder is not None:
        check_sums(folder, settings.cache)
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    model = use_packed_attention(model).to(device=device, dtype=getattr(torch, dtype)).eval()
    if device == "cpu" and dtype == "bfloat16":
        _use_exact_gelu(model)
    return model.requires_grad_(False)


def load_body(
    settings: Settings, folder: Path | None, revision: str, dtype: str, example: Callable[[Body], None]
) -> Body:
    """The base model with an adapter merged into it, for inference.

    ``dtype``: as in :func:`load_merged`, or `int8`, which `auto` also chooses on a CPU that multiplies int8 faster than
    floats if the base supports it. The model is quantised once, calibrated by running ``example``, and kept in the
    cache folder under ``revision``, which identifies what is merged into the base. Raises ValueError where `int8` is
    not supported, and DigestError as :func:`load_merged` does.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    from shared.model import products
    from shared.model.base_model import base_folder
    from shared.model.body import Packed
    from shared.model.int8 import FORMAT, Int8Body, quantised, supports

    if folder is not None:
        check_sums(folder, settings.cache)  # int8 weights made earlier need not read the adapter, but what is beside it
    base = base_folder(settings)
    config = AutoConfig.from_pretrained(base)
    possible = not torch.cuda.is_available() and supports(config)
    if dtype == "int8" and not possible:
        raise ValueError("dtype: int8 needs Gemma 3 and a CPU; set it to auto")
    if dtype != "int8" and not (dtype == "auto" and possible and products.prefers_int8(settings.cache)):
        return Packed(load_merged(settings, folder, dtype))

    def make(file: Path) -> None:
        packed = Packed(load_merged(settings, folder))
        save_file(quantised(packed, lambda: example(packed)), file)

    file = settings.cache / f"int8-{FORMAT}-{revision}-{_files(Path(base))}.safetensors"
    return Int8Body(config, load_file(build_once(file, make)), products.fastest_int8(settings.cache))


def _files(folder: Path) -> str:
    """Eight hex digits that change with a base's files; for a hub id they are constant.

    By size and samples, which training changes all over, and not by times, which an image's layers round.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as content:
            for n in range(_SAMPLES):
                content.seek(size * n // _SAMPLES)
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()[:8]


def _use_exact_gelu(model: Any) -> None:
    """Replaces the tanh approximation of GELU by exact GELU, in place.

    On a CPU that is four times as fast, and in bfloat16 the two differ by no more than rounding (relative 0.0013).
    """
    from torch import nn
    from transformers.activations import GELUTanh

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GELUTanh):
                setattr(module, name, nn.GELU())
