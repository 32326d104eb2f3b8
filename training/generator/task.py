"""Fine-tuning of the generator: an adapter (or a whole model) that copies text with brackets.

The loss is the negative log-likelihood of the right action among the admissible ones (:mod:`shared.text.per_type`): the
same few logits that decoding looks at, so the projection onto the full vocabulary is never computed. The loop around it
is :mod:`training.tuning.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.model.attention import run, use_packed_attention
from shared.model.base_model import EMBEDDED, EMBEDDED_HUB_ID, load_base, load_tokenizer
from shared.settings import Settings
from shared.text.per_type import PerTypeTokens
from training.ablations import questions
from training.config import ConfigError, GeneratorConfig, RunConfig
from training.data import lines, mixing
from training.data.lines import PackedLines, SegmentLines, pack
from training.generator import low_rank
from training.tuning.loop import Measurements
from training.tuning.merged_lora import MergedLora
from training.tuning.optimizer import whole

Measure = Callable[[Any], dict[str, float]]
"""A model's current F1 on the dev split of each corpus."""


class Objective(nn.Module):
    """Mean negative log-likelihood of a batch's right actions, in nats. A module, so that DDP can wrap it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PackedLines) -> Tensor:
        return decision_loss(self.model, batch)


def decision_loss(model: Any, batch: PackedLines) -> Tensor:
    """Mean negative log-likelihood of the right actions, in nats."""
    body, embedding = parts(model)
    hidden = run(body, batch.ids, batch.positions, batch.layout)
    picked = hidden[batch.at].float()
    logits = torch.einsum("nh,nkh->nk", picked, embedding.weight[batch.options].float())
    logits = logits.masked_fill(~batch.valid, float("-inf"))
    return F.cross_entropy(logits, batch.right)


def plain(model: Any) -> Any:
    """The causal model under an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def parts(model: Any) -> tuple[Any, Any]:
    """The decoder and the output embedding of a causal model, which may have an adapter."""
    causal_model = plain(model)
    return causal_model.get_decoder(), causal_model.get_output_embeddings()


class GeneratorTask:
    """See :class:`training.tuning.loop.Task`."""

    def __init__(
        self, config: GeneratorConfig, settings: Settings, device: torch.device, measure: Measure | None = None
    ) -> None:
        self._config, self._settings, self._device, self._measure = config, settings, device, measure
        tokens = PerTypeTokens(load_tokenizer(settings))
        of_scheme = questions.items if config.scheme == "question" else lines.items
        vary = (
            (lambda item, draw: item.thinned(config.negatives, draw))
            if config.negatives < 1
            else (lambda item, _: item)
        )
        self._mixer, dev, self.data = mixing.load(
            config, settings, lambda examples: of_scheme(examples, tokens, config.max_units), vary
        )
        self.dev = {name: [self.batch(group) for group in groups] for name, groups in dev.items()}
        self._model = build(config, settings, device)
        self.shared_out = config.parallel == "fsdp"
        # A second copy of the weights: cheap in a CPU's memory, but not next to a large base on a GPU or sharded.
        copied = config.tuning == "lora" and device.type == "cpu" and not self.shared_out
        self._merged = MergedLora(self._model) if copied else None
        self.layers = parts(self._model)[0].layers
        self.objective = Objective(self._model)

    def groups(self) -> Iterator[list[SegmentLines]]:
        return iter(self._mixer)

    def batch(self, group: list[SegmentLines]) -> PackedLines:
        return pack(group, self._config.batch_tokens, self._device)

    def updated(self) -> None:
        if self._merged is not None:
            self._merged.refresh()

    def weights(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        """An adapter, else the whole model; if only a difference is exported, the trained weights in full precision."""
        if not self._config.export_rank:
            return _weights(self._model)
        names = [name for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        return {name: whole(m).clone() for name, m in zip(names, masters, strict=True)}

    def write(self, weights: Mapping[str, Tensor], folder: Path, *, last: bool) -> dict[str, Any]:
        if not self._config.export_rank:
            write_model(self._model, weights, folder, self._settings)
        elif last:  # it needs a second copy of the base, and takes a while
            return {"export": _write_difference(weights, self._config, folder, self._settings)}
        return {}

    def measure(self) -> Measurements | None:
        return None if self._measure is None else Measurements(self._measure(plain(self._model)))


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
        base = use_packed_attention(load_base(settings, _dtype(config), four_bit=True))
        return _with_adapter(base.requires_grad_(False), config)
    model = use_packed_attention(load_base(settings, _dtype(config))).to(device).requires_grad_(False)
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
    base = use_packed_attention(load_base(settings, _dtype(config))).to(device)
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
            parameter.data = parameter.data.to(_dtype(config))
    return model


def _dtype(config: RunConfig) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.precision]


def _weights(model: Any) -> dict[str, Tensor]:
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


def _write_difference(
    weights: Mapping[str, Tensor], config: GeneratorConfig, folder: Path, settings: Settings
) -> dict[str, float]:
    """The difference between the given weights and the base as an adapter; returns its entry in the manifest."""
    model, kept = low_rank.adapter(load_base(settings, _dtype(config)), weights, config.export_rank)
    write_model(model, _weights(model), folder, settings)
    return {"kept": round(kept, 4)}
