"""Fine-tuning of the generator: an adapter (or a whole model) that copies text with brackets.

The loop is a plain function that every worker of a run calls; with one worker it needs neither Ray nor a process
group (:mod:`training.job` is the Ray Train job around it). The loss is the negative log-likelihood of the right action
among the admissible ones (:mod:`shared.copying`): the same few logits that decoding looks at, so the projection onto
the full vocabulary is never computed.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from shared.base_model import EMBEDDED, EMBEDDED_HUB_ID, load_base, load_tokenizer
from shared.copying import CopyTokens
from shared.packing import run, use_packed_attention
from shared.settings import Settings
from training import labelled, low_rank, tasks
from training.config import ConfigError, GeneratorConfig, TrainingError
from training.corpora import Example, corpus_folder, read
from training.merged_lora import MergedLora
from training.tasks import Batch, Item, Mixer, grouped, pack, shares

MANIFEST = "training.json"
_STATE = "state.pt"
_BEST = "best.safetensors"
_PACKAGES = ("biobracket", "torch", "transformers", "peft")

Measure = Callable[[Any], dict[str, float]]
"""F1 on the dev split of each corpus, of a model as it stands."""


@dataclass(frozen=True)
class Report:
    """A line of progress. Losses are nats a decision; ``tokens`` are those of all workers."""

    step: int
    tokens: int
    seconds: float
    loss: float
    learning_rate: float
    dev: dict[str, float] | None = None
    f1: dict[str, float] | None = None


class Checkpoints(Protocol):
    """Where a run keeps what it can be resumed from."""

    def latest(self) -> contextlib.AbstractContextManager[Path | None]:
        """A folder with the newest checkpoint, for as long as the context lasts; none where there is none."""
        ...

    def save(self, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        """Keeps what ``write`` puts into the folder that it is given. Called by all workers; the first's is kept."""
        ...


class Objective(nn.Module):
    """Mean negative log-likelihood of a batch's right actions, in nats. A module, so that DDP can wrap it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return decision_loss(self.model, batch)


def decision_loss(model: Any, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the right actions, in nats."""
    body, embedding = _parts(model)
    hidden = run(body, batch.ids, batch.positions, batch.layout)
    picked = hidden[batch.at].float()
    logits = torch.einsum("nh,nkh->nk", picked, embedding.weight[batch.options].float())
    logits = logits.masked_fill(~batch.valid, float("-inf"))
    return F.cross_entropy(logits, batch.right)


def plain(model: Any) -> Any:
    """The causal model below an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _parts(model: Any) -> tuple[Any, Any]:
    causal_model = plain(model)
    return causal_model.get_decoder(), causal_model.get_output_embeddings()


class MasterAdamW:
    """AdamW on float32 copies of the parameters: a bfloat16 weight loses updates below 1/256 of its size."""

    def __init__(self, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
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
        """Everything as whole tensors on the CPU, whatever is shared out. All workers must call it."""
        state = [self.optimizer.state[m] for m in self.masters]
        return {
            "masters": [_whole(m) for m in self.masters],
            "state": [{name: _whole(value) for name, value in one.items()} for one in state],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for master, parameter, saved, one in zip(
                self.masters, self.parameters, state["masters"], state["state"], strict=True
            ):
                master.copy_(_like(saved, master))
                parameter.copy_(master)
                if one:
                    self.optimizer.state[master] = {
                        name: _like(value, master) if value.shape == saved.shape and value.dim() else value.clone()
                        for name, value in one.items()
                    }


def _whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def _like(whole: Tensor, other: Tensor) -> Tensor:
    whole = whole.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(whole, other.device_mesh, other.placements)
    return whole.clone()


@dataclass
class _Progress:
    """What a checkpoint holds beside weights and optimiser; the same in every worker."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float = -1.0
    worse: int = 0  # scores since the best one
    losses: list[float] = field(default_factory=list)  # since the last line


def check(config: GeneratorConfig, settings: Settings) -> None:
    """What would fail in every worker fails here once: corpora, their labels, and the adapter to go on from.

    :class:`training.corpora.CorpusError` or :class:`training.config.ConfigError`.
    """
    if config.init is not None:
        _init_folder(config.init)
    for name, corpus in config.corpora.items():
        for split in ("train", "dev"):
            read(corpus_folder(name, settings), split, corpus.types)


def train(
    config: GeneratorConfig,
    settings: Settings,
    checkpoints: Checkpoints,
    report: Callable[[Report], None] = lambda _: None,
    measure: Measure | None = None,
    command: Sequence[str] = (),
) -> None:
    """Trains, and leaves the result as the last checkpoint: see :func:`export`. Goes on from the newest one.

    Every worker of an initialised process group calls it with the same arguments; ``report`` is called in the first
    one alone. ``measure`` is what ``measure_every`` calls, ``command`` what the manifest names as such.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    mixer, dev_batches, data = _data(config, settings, device)
    model = build(config, settings, device)
    # A second copy of the weights: cheap beside a CPU's memory, not beside a large base on a GPU or in shares.
    merged = (
        MergedLora(model) if config.tuning == "lora" and device.type == "cpu" and config.parallel == "ddp" else None
    )
    if config.compile:
        for layer in _parts(model)[0].layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)
    objective: Any = Objective(model)
    if size > 1 and config.parallel == "fsdp":
        _share_out(objective)
    elif size > 1:
        objective = nn.parallel.DistributedDataParallel(objective)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = MasterAdamW(parameters, config.learning_rate, config.weight_decay)

    now = _Progress()
    best: dict[str, Tensor] = {}

    def weights() -> dict[str, Tensor]:
        """As :func:`_weights`, or where only their difference is left, the trained ones alone and in full precision."""
        if not config.export_rank:
            return _weights(model)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return {name: _whole(m).clone() for name, m in zip(names, optimizer.masters, strict=True)}

    with checkpoints.latest() as found:
        if found is not None:
            state = torch.load(found / _STATE, weights_only=True)
            optimizer.load_state_dict(state.pop("optimizer"))
            now = _Progress(**state)
            if (found / _BEST).is_file():
                best = load_file(found / _BEST)
    if merged is not None:
        merged.refresh()

    def save(*, last: bool = False) -> None:
        # Here, and not in `write`: what is shared out is gathered by all workers together.
        state = {"optimizer": optimizer.state_dict(), **asdict(now)}
        given = best or weights()

        def write(folder: Path) -> None:
            torch.save(state, folder / _STATE)
            if best:
                save_file(best, folder / _BEST)
            manifest = _manifest(config, settings, data, size) | {"command": list(command), "history": now.history}
            if not config.export_rank:
                _write_model(model, given, folder, settings)
            elif last:  # it takes a second copy of the base, and a while
                manifest["export"] = _write_difference(given, config, folder, settings)
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

        checkpoints.save({"step": now.step, "tokens": now.tokens, "seconds": now.seconds}, write)

    def tell(rate: float, dev: dict[str, float] | None, f1: dict[str, float] | None) -> None:
        nonlocal best
        if now.losses:
            loss = sum(now.losses) / len(now.losses)
            now.losses.clear()
        else:  # no step since the last line, of which this is the rest
            part = now.history.pop()
            loss, rate, dev = (part[name] for name in ("loss", "learning_rate", "dev"))
        line = Report(now.step, now.tokens, now.seconds, loss, rate, dev, f1)
        now.history.append(asdict(line))
        if f1 is not None:
            mean = sum(f1.values()) / len(f1)
            now.worse = 0 if mean > now.best else now.worse + 1
            if mean > now.best:
                now.best, best = mean, weights()
        if rank == 0:
            report(line)

    # The order is a function of the seed: worker r of n takes every n-th group from the r-th, after those seen.
    groups = islice(iter(mixer), now.step * config.accumulate * size + rank, None, size)
    before, begun, saved = now.seconds, time.monotonic(), now.seconds
    while (progress := max(now.seconds / (60 * config.minutes), now.tokens / config.max_tokens)) < 1.0:
        if config.patience and now.worse >= config.patience:
            break
        warm = min(1.0, (now.step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        rate = config.learning_rate * warm * (1.0 - progress)
        loss, tokens = _step(objective, groups, config, device)
        optimizer.step(rate, config.clip)
        if merged is not None:
            merged.refresh()
        # The first worker's clock is everybody's, so that all of them end at the same step.
        told = _sum([loss / size, tokens, 0.0 if rank else before + time.monotonic() - begun], device)
        now.losses.append(told[0])
        now.step, now.tokens, now.seconds = now.step + 1, now.tokens + round(told[1]), told[2]
        if not math.isfinite(told[0]):
            raise TrainingError("learning_rate: the loss is no longer finite; lower it")
        due = config.measure_every and now.step % config.measure_every == 0 and measure is not None
        if now.step % 10 == 0 or due:
            dev = _dev_loss(objective, dev_batches) if now.step % config.dev_every == 0 else None
            f1 = _measured(objective, model, measure, rank) if due and measure is not None else None
            tell(rate, dev, f1)
        if now.seconds - saved > 60 * config.save_minutes:
            saved = now.seconds
            save()
    # The last weights are mostly the best. By the history, which all workers have, also those of a run that had ended.
    measured = now.history and now.history[-1]["step"] == now.step and now.history[-1]["f1"] is not None
    if config.measure_every and measure is not None and not measured:
        tell(0.0, None, _measured(objective, model, measure, rank))
    save(last=True)


def _data(
    config: GeneratorConfig, settings: Settings, device: torch.device
) -> tuple[Mixer, dict[str, list[Batch]], dict[str, Any]]:
    """The training stream, the dev batches of each corpus, and what the manifest says of the data."""
    tokens = CopyTokens(load_tokenizer(settings))
    train_items: dict[str, list[Item]] = {}
    dev_batches: dict[str, list[Batch]] = {}
    data: dict[str, Any] = {}
    for name, corpus in config.corpora.items():
        folder = corpus_folder(name, settings)
        with _uncollected():
            train_items[name] = _items(read(folder, "train", corpus.types), tokens, config)
        dev_batches[name] = [
            pack(group, config.batch_tokens, device)
            for group in dev_groups(name, read(folder, "dev", corpus.types), tokens, config)
        ]
        data[name] = {f"{split}_sha256": _sha256(folder / f"{split}.jsonl") for split in ("train", "dev")}
        data[name] |= {"segments": len(train_items[name]), "tokens": sum(map(len, train_items[name]))}
    given = {name: corpus.share for name, corpus in config.corpora.items()}
    mix = shares(train_items, given, config.temperature)
    for name, share in mix.items():
        data[name]["share"] = round(share, 4)
    return Mixer(train_items, mix, config.batch_tokens, config.seed, config.negatives), dev_batches, data


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look through millions of objects that stay, time and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _items(examples: Sequence[Example], tokens: CopyTokens, config: GeneratorConfig) -> list[Item]:
    of_scheme = labelled.items if config.scheme == "labelled" else tasks.items
    return of_scheme(examples, tokens, config.max_units)


def dev_groups(name: str, examples: Sequence[Example], tokens: CopyTokens, config: GeneratorConfig) -> list[list[Item]]:
    """``dev_batches`` groups of a dev split, fewer where it is smaller; no more of it is tokenised than that takes.

    The same texts whatever the run's seed, so that losses can be compared.
    """
    shuffled = random.Random(0).sample(examples, len(examples))  # noqa: S311 - an order, not a secret
    found = (item for example in shuffled for item in _items([example], tokens, config))
    fitting = (item for item in found if len(item) <= config.batch_tokens)
    groups = list(islice(grouped(fitting, config.batch_tokens), config.dev_batches))
    if not groups:
        raise ConfigError(f"batch_tokens: no dev text of {name} fits a batch of {config.batch_tokens} tokens; raise it")
    return groups


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _init_folder(folder: Path) -> str:
    """The folder of the adapter to go on from; ConfigError where it holds none."""
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"init: no adapter_config.json in {folder}; give the folder of an adapter made by `biobracket train "
            "generator`, or leave the field out"
        )
    return str(folder)


def build(config: GeneratorConfig, settings: Settings, device: torch.device) -> Any:
    """The model to train on a device; what is trained requires gradients."""
    from peft import LoraConfig, PeftModel, get_peft_model

    dtype = _dtype(config)
    four_bit = config.tuning == "qlora"
    base = use_packed_attention(load_base(settings, dtype, four_bit=four_bit))
    if not four_bit:  # that one is on its device, and cannot be moved
        base = base.to(device)
    base.requires_grad_(False)
    if config.tuning == "full":
        model = base
        if config.init is not None:
            model = PeftModel.from_pretrained(base, _init_folder(config.init)).merge_and_unload()
            model.requires_grad_(False)
        if config.export_rank:  # a difference of low rank says nothing of norms
            for weight in low_rank.linear_weights(model).values():
                weight.requires_grad_(True)
        else:
            _parts(model)[0].layers.requires_grad_(True)
    elif config.init is not None:
        folder = _init_folder(config.init)
        model = PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=False)
    else:
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(base, lora, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
            parameter.data = parameter.data.to(dtype)
    return model


def _dtype(config: GeneratorConfig) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[config.precision]


def _share_out(objective: Objective) -> None:
    """Each worker keeps its share of every layer (FSDP2), in place; what is outside of them stays whole once used."""
    from torch.distributed.fsdp import fully_shard

    for layer in _parts(objective.model)[0].layers:
        fully_shard(layer)
    fully_shard(objective, reshard_after_forward=False)


def _step(
    objective: Any, groups: Iterator[list[Item]], config: GeneratorConfig, device: torch.device
) -> tuple[float, int]:
    """Gradients of a step; the worker's mean loss and tokens."""
    total, tokens = 0.0, 0
    for i in range(config.accumulate):
        last = i == config.accumulate - 1
        quiet = objective.no_sync() if not last and hasattr(objective, "no_sync") else contextlib.nullcontext()
        batch = pack(next(groups), config.batch_tokens, device)
        with quiet:
            loss = objective(batch) / config.accumulate
            loss.backward()
        total += loss.item()
        tokens += batch.tokens
    return total, tokens


def _sum(values: list[float], device: torch.device) -> list[float]:
    """Sums over all workers."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(v) for v in tensor.tolist()]


@torch.no_grad()
def _dev_loss(objective: Any, batches: Mapping[str, list[Batch]]) -> dict[str, float]:
    """Every worker computes the same: where the model is shared out, none can do without the others."""
    return {name: sum(objective(batch).item() for batch in found) / len(found) for name, found in batches.items()}


def _measured(objective: Any, model: Any, measure: Measure, rank: int) -> dict[str, float]:
    """F1 on the dev splits. By the first worker alone, but by all of them where each has only a share of the model."""
    shared_out = hasattr(objective, "unshard")
    told: list[Any] = [None]
    if rank == 0 or shared_out:
        if shared_out:
            objective.unshard()
        model.eval()
        with torch.compiler.set_stance("force_eager"):  # its shapes are not those of the batches
            told = [measure(plain(model))]
        model.train()
        if shared_out:
            objective.reshard()
    if dist.is_initialized():
        dist.broadcast_object_list(told)
    found: dict[str, float] = told[0]
    return found


def _weights(model: Any) -> dict[str, Tensor]:
    """Whole tensors on the CPU by name: an adapter's, else all of the model's. All workers must call it."""
    adapter = hasattr(model, "peft_config")
    # Clones: those on the CPU would change with the next step.
    return {n: _whole(p).clone() for n, p in model.named_parameters() if p.requires_grad or not adapter}


def _write_model(model: Any, weights: dict[str, Tensor], folder: Path, settings: Settings) -> None:
    """The adapter in peft's format, or the whole model in transformers', with the given weights."""
    if hasattr(model, "peft_config"):
        # By its name: the folder that the base was read from means nothing on another machine.
        named = EMBEDDED_HUB_ID if settings.base_model == EMBEDDED else settings.base_model
        model.peft_config["default"].base_model_name_or_path = named
    else:
        load_tokenizer(settings).save_pretrained(folder)
    model.save_pretrained(folder, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card


def _write_difference(
    weights: Mapping[str, Tensor], config: GeneratorConfig, folder: Path, settings: Settings
) -> dict[str, float]:
    """The way from the base to the given weights as an adapter; what the manifest says of it."""
    model, kept = low_rank.adapter(load_base(settings, _dtype(config)), weights, config.export_rank)
    _write_model(model, _weights(model), folder, settings)
    return {"kept": round(kept, 4)}


def _manifest(config: GeneratorConfig, settings: Settings, data: dict[str, Any], workers: int) -> dict[str, Any]:
    """What a run was made of."""
    # Where there is an adapter to go on from, rank and scale are its own: they stand in the adapter's configuration.
    hidden = {"storage", "init"} | ({"rank", "alpha"} if config.init is not None else set())
    return {
        "config": config.model_dump(mode="json", exclude=hidden),
        "base_model": settings.base_model,
        "workers": workers,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "data": data,
    }


class FolderCheckpoints:
    """The newest checkpoint in a folder; replaced at once: a killed run leaves a whole one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        yield self._folder if self._folder.is_dir() else None

    def save(self, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        del metrics
        new, old = self._folder.with_suffix(".new"), self._folder.with_suffix(".old")
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir(parents=True)
        write(new)
        if self._folder.is_dir():
            self._folder.rename(old)
        new.rename(self._folder)
        shutil.rmtree(old, ignore_errors=True)


def export(checkpoint: Path, out: Path) -> Path:
    """Copies model and manifest of a checkpoint into ``out``, without what only a resumed run needs."""
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in (_STATE, _BEST):
            shutil.copyfile(file, out / file.name)
    return out
