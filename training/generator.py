"""Fine-tuning of the generator: a low-rank adapter that copies text with brackets.

The loop is a plain function of one process. The loss is the negative log-likelihood of the right action among the
admissible ones (:mod:`shared.copying`): the same few logits that decoding looks at, so the projection onto the full
vocabulary is never computed.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.base_model import EMBEDDED, EMBEDDED_HUB_ID, load_base, load_tokenizer
from shared.copying import CopyTokens
from shared.packing import run, use_packed_attention
from shared.settings import Settings
from training.corpora import corpus_folder, read
from training.tasks import Batch, Item, Mixer, items, pack


@dataclass(frozen=True)
class GeneratorConfig:
    """What a run is made of. ``minutes`` or ``max_tokens`` ends it, whichever comes first; the learning rate falls
    linearly to nothing by then."""

    out: Path
    corpora: dict[str, float] = field(default_factory=lambda: {"genia": 0.33, "cmeee_v2": 0.45, "bc5cdr": 0.22})
    minutes: float = 60.0
    max_tokens: int = 10**9
    batch_tokens: int = 2048
    accumulate: int = 1
    rank: int = 32
    alpha: int = 64
    learning_rate: float = 8e-4
    warmup_steps: int = 40
    weight_decay: float = 0.0
    clip: float = 1.0
    max_units: int = 160
    seed: int = 13
    compile: bool = False
    dev_batches: int = 4
    dev_every: int = 100
    save_minutes: float = 5.0
    init: Path | None = None  # an adapter to go on from
    resume: bool = False


@dataclass(frozen=True)
class Report:
    """A line of progress. Losses are nats a decision."""

    step: int
    tokens: int
    seconds: float
    loss: float
    dev: dict[str, float] | None
    learning_rate: float


def decision_loss(model: Any, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the right actions, in nats."""
    body, embedding = _parts(model)
    hidden = run(body, batch.ids, batch.positions, batch.layout)
    picked = hidden[batch.at].float()
    logits = torch.einsum("nh,nkh->nk", picked, embedding.weight[batch.options].float())
    logits = logits.masked_fill(~batch.valid, float("-inf"))
    return F.cross_entropy(logits, batch.right)


def _parts(model: Any) -> tuple[Any, Any]:
    causal_model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal_model.get_decoder(), causal_model.get_output_embeddings()


class MasterAdamW:
    """AdamW on float32 copies of bfloat16 parameters: a bfloat16 weight loses updates below 1/256 of its size."""

    def __init__(self, parameters: list[torch.nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self.parameters = parameters
        self.masters = [p.detach().float().clone() for p in parameters]
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, foreach=True
        )

    def step(self, learning_rate: float, clip: float) -> None:
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        return {"masters": self.masters, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for master, saved, parameter in zip(self.masters, state["masters"], self.parameters, strict=True):
            master.copy_(saved)
            parameter.data.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])


def train(config: GeneratorConfig, settings: Settings, report: Callable[[Report], None] = lambda _: None) -> Path:
    """Train an adapter and save it in ``config.out``, with ``training.json`` beside it. Returns the folder.

    With ``resume`` the last ``checkpoint.pt`` of the folder is gone on from.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    random.seed(config.seed)
    torch.manual_seed(config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = CopyTokens(load_tokenizer(settings))
    train_items: dict[str, list[Item]] = {}
    dev_batches: dict[str, list[Batch]] = {}
    for name in config.corpora:
        folder = corpus_folder(name, settings)
        train_items[name] = items(read(folder, "train"), tokens, config.max_units)
        dev_batches[name] = _dev_batches(items(read(folder, "dev"), tokens, config.max_units), config, device)
    mixer = Mixer(train_items, config.corpora, config.batch_tokens, config.seed)

    base = use_packed_attention(load_base(settings)).to(device)
    if config.init is not None:
        model = PeftModel.from_pretrained(base, config.init, is_trainable=True, autocast_adapter_dtype=False)
    else:
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    parameters = [p for n, p in model.named_parameters() if "lora_" in n]
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.data = parameter.data.to(torch.bfloat16)
    if config.compile:
        for layer in _parts(model)[0].layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)
    optimizer = MasterAdamW(parameters, config.learning_rate, config.weight_decay)

    step = seen = 0
    before = 0.0  # seconds of earlier sittings
    history: list[dict[str, Any]] = []
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint = config.out / "checkpoint.pt"
    if config.resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        step, seen, before, history = state["step"], state["tokens"], state["seconds"], state["history"]

    begun = saved = time.monotonic()
    groups = iter(mixer)
    for _ in range(step * config.accumulate):  # the order is a function of the seed: skip what was seen
        next(groups)
    losses: list[float] = []
    while True:
        seconds = before + time.monotonic() - begun
        progress = max(seconds / (60 * config.minutes), seen / config.max_tokens)
        if progress >= 1.0:
            break
        rate = config.learning_rate * min(1.0, (step + 1) / config.warmup_steps) * (1.0 - progress)
        for _ in range(config.accumulate):
            batch = pack(next(groups), config.batch_tokens, device)
            loss = decision_loss(model, batch) / config.accumulate
            loss.backward()
            losses.append(loss.item() * config.accumulate)
            seen += batch.tokens
        optimizer.step(rate, config.clip)
        step += 1
        if step % 10 == 0:
            dev = _dev_loss(model, dev_batches) if step % config.dev_every == 0 else None
            now = Report(step, seen, before + time.monotonic() - begun, sum(losses) / len(losses), dev, rate)
            losses.clear()
            history.append(vars(now))
            report(now)
            if not math.isfinite(now.loss):
                raise RuntimeError("the loss is no longer finite; lower learning_rate")
        if time.monotonic() - saved > 60 * config.save_minutes:
            saved = time.monotonic()
            _save(model, config, settings, history)
            _save_checkpoint(checkpoint, optimizer, step, seen, before + saved - begun, history)
    _save(model, config, settings, history)
    checkpoint.unlink(missing_ok=True)
    return config.out


def _dev_batches(found: list[Item], config: GeneratorConfig, device: torch.device) -> list[Batch]:
    fixed = Mixer({"dev": found}, {"dev": 1.0}, config.batch_tokens, config.seed)
    groups: Iterator[list[Item]] = iter(fixed)
    return [pack(next(groups), config.batch_tokens, device) for _ in range(config.dev_batches)]


@torch.no_grad()
def _dev_loss(model: Any, batches: dict[str, list[Batch]]) -> dict[str, float]:
    return {
        name: sum(decision_loss(model, batch).item() for batch in found) / len(found)
        for name, found in batches.items()
        if found
    }


def _save(model: Any, config: GeneratorConfig, settings: Settings, history: list[dict[str, Any]]) -> None:
    """The adapter in peft's format, and the run's manifest; replaced at once: a killed run leaves a whole one."""
    work = config.out / "saving"
    # By its name: the folder that the base was read from means nothing on another machine.
    named = EMBEDDED_HUB_ID if settings.base_model == EMBEDDED else settings.base_model
    model.peft_config["default"].base_model_name_or_path = named
    model.save_pretrained(work)
    for file in work.iterdir():
        if file.suffix in {".safetensors", ".json"}:
            file.replace(config.out / file.name)
    shutil.rmtree(work)
    manifest = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items() if k != "out"},
        "base_model": settings.base_model,
        "torch": torch.__version__,
        "history": history,
    }
    (config.out / "training.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _save_checkpoint(
    file: Path, optimizer: MasterAdamW, step: int, tokens: int, seconds: float, history: list[dict[str, Any]]
) -> None:
    state = {
        "optimizer": optimizer.state_dict(),
        "step": step,
        "tokens": tokens,
        "seconds": seconds,
        "history": history,
    }
    part = file.with_suffix(".part")
    torch.save(state, part)
    part.replace(file)
