"""Which engine runs the model."""

from __future__ import annotations

import os

from services.generation.config import GenerationConfig
from services.generation.engine import Engine
from shared.model.base_model import base_folder
from shared.model.folders import adapter_folder
from shared.model.scheme import check_scheme
from shared.settings import Settings

# Share of a device's memory for weights of two bytes each; the rest is for keys, values and activations.
_SHARE = 0.6


def load(settings: Settings, config: GenerationConfig) -> Engine:
    """The engine of the settings, with its model loaded. Heavy imports are inside, to keep importing fast."""
    check_scheme(adapter_folder(settings))
    if config.engine == "vllm" or (config.engine == "auto" and not fits(settings)):
        from services.generation.vllm import VllmEngine

        return VllmEngine.load(settings, config)
    from services.generation.copy.engine import CopyEngine

    return CopyEngine.load(settings, config)


def fits(settings: Settings) -> bool:
    """Whether the base's weights leave enough room on one device: the GPU, or memory if there is none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = base_folder(settings)  # makes the base where it is not there yet, and needs memory for it
    with torch.device("meta"):  # no weights are read
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    weights = 2 * sum(parameter.numel() for parameter in model.parameters())
    there = (
        torch.cuda.mem_get_info()[1]
        if torch.cuda.is_available()
        else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    return bool(weights <= _SHARE * there)
