"""The model that a run trains: the base, whole or under an adapter, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.model.attention import use_packed_attention
from shared.model.base_model import EMBEDDED, EMBEDDED_HUB_ID, load_base, load_tokenizer
from shared.model.products import fastest_float
from shared.settings import Settings
from training.config import ConfigError, GeneratorConfig, RunConfig
from training.generator import low_rank
from training.tuning.optimizer import whole


def plain(model: Any) -> Any:
    """The causal model under an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def parts(model: Any) -> tuple[Any, Any]:
    """The decoder and the output embedding of a causal model, which may have an adapter."""
    causal_model = plain(model)
    return causal_model.get_decoder(), causal_model.get_output_embeddings()


def init_folder(folder: Path) -> str:
    """The folder of the adapter to start from; ConfigError if it holds none."""
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"init: no adapter_config.json in {folder}; give the folder of an adapter made by `biobracket train "
            "generator`, or leave the field out"
        )
    return str(folder)


def build(config: GeneratorConfig, settings: Settings, device: torch.device) -> Any:
    """The model to train, on a device; the parameters to train require gradients."""
    if config.tuning == "lora":
        return lora(config, settings, device)
    if config.tuning == "qlora":  # already on its device
        base = use_packed_attention(load_base(settings, _dtype(config, settings), four_bit=True))
        return _with_adapter(base.requires_grad_(False), config)
    model = use_packed_attention(load_base(settings, _dtype(config, settings))).to(device).requires_grad_(False)
    if config.init is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, init_folder(config.init)).merge_and_unload().requires_grad_(False)
    if config.export_rank:  # a low-rank difference does not cover norms
        for weight in low_rank.linear_weights(model).values():
            weight.requires_grad_(True)
    else:
        parts(model)[0].layers.requires_grad_(True)
    return model


def lora(config: RunConfig, settings: Settings, device: torch.device) -> Any:
    """The base model on a device, with an adapter that requires gradients."""
    base = use_packed_attention(load_base(settings, _dtype(config, settings))).to(device)
    return _with_adapter(base.requires_grad_(False), config)


def _with_adapter(base: Any, config: RunConfig) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if config.init is not None:
        folder = init_folder(config.init)
        model = PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=False)
    else:
        fresh = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(base, fresh, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(base.dtype)
    return model


def _dtype(config: RunConfig, settings: Settings) -> torch.dtype:
    name: str = config.precision
    if name == "auto":
        name = "bfloat16" if config.gpu else fastest_float(settings.cache)
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def weights_of(model: Any) -> dict[str, Tensor]:
    """Whole tensors on the CPU by name: an adapter's, else all of the model's. All workers must call it."""
    adapter = hasattr(model, "peft_config")
    # Cloned: tensors that are already on the CPU would change with the next step.
    return {n: whole(p).clone() for n, p in model.named_parameters() if p.requires_grad or not adapter}


def write_model(model: Any, weights: Mapping[str, Tensor], folder: Path, settings: Settings) -> None:
    """The adapter in peft's format, or the whole model in transformers', with the given weights."""
    if hasattr(model, "peft_config"):
        # By name: the folder from which the base was loaded means nothing on another machine.
        named = EMBEDDED_HUB_ID if settings.base_model == EMBEDDED else settings.base_model
        model.peft_config["default"].base_model_name_or_path = named
    else:
        load_tokenizer(settings).save_pretrained(folder)
    model.save_pretrained(folder, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card


def write_difference(
    weights: Mapping[str, Tensor], config: GeneratorConfig, folder: Path, settings: Settings
) -> dict[str, float]:
    """The difference between the given weights and the base as an adapter; returns its entry in the manifest."""
    model, kept = low_rank.adapter(load_base(settings, _dtype(config, settings)), weights, config.export_rank)
    write_model(model, weights_of(model), folder, settings)
    return {"kept": round(kept, 4)}
