"""The loop of a training run, whatever it trains: steps, losses and scores on dev, checkpoints, and going on from them.

What is trained is a :class:`Task`, which :mod:`training.generator.task` and :mod:`training.selector.task` make. The
loop is a plain function that every worker of a run calls; with one worker it needs neither Ray nor a process group
(:mod:`training.job` is the Ray Train job around it).
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from shared.settings import Settings
from training.config import RunConfig, TrainingError

MANIFEST = "training.json"
_STATE = "state.pt"
_BEST = "best.safetensors"
_PACKAGES = ("biobracket", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Report:
    """A line of progress. ``tokens`` are those of all workers."""

    step: int
    tokens: int
    seconds: float
    loss: float
    learning_rate: float
    dev: dict[str, float] | None = None
    f1: dict[str, float] | None = None
    more: dict[str, dict[str, float]] | None = None  # further measures on dev, by name and corpus


class Measured(NamedTuple):
    """Scores on the dev splits, by corpus, of which a greater mean is better; and further measures, by name."""

    f1: dict[str, float]
    more: dict[str, dict[str, float]] | None = None


class Checkpoints(Protocol):
    """Where a run keeps what it can be resumed from."""

    def latest(self) -> contextlib.AbstractContextManager[Path | None]:
        """A folder with the newest checkpoint, for as long as the context lasts; none where there is none."""
        ...

    def save(self, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        """Keeps what ``write`` puts into the folder that it is given. Called by all workers; the first's is kept."""
        ...


class Batch(Protocol):
    """What a step sees of the corpora."""

    @property
    def tokens(self) -> int:
        """How many tokens it has, without padding."""
        ...


class Task(Protocol):
    """What a run trains. Every worker makes its own of the same configuration."""

    @property
    def objective(self) -> nn.Module:
        """From a batch to its mean loss; what is trained in it requires gradients."""
        ...

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The layers of its model, which are compiled or shared out one by one."""
        ...

    @property
    def shared_out(self) -> bool:
        """Whether several workers share the model out (FSDP), and do not each have all of it (DDP)."""
        ...

    @property
    def data(self) -> dict[str, Any]:
        """What the manifest says of the corpora."""
        ...

    @property
    def dev(self) -> Mapping[str, Sequence[Batch]]:
        """Batches of each dev split."""
        ...

    def groups(self) -> Iterator[Any]:
        """What makes a batch each, without end; a function of the seed."""
        ...

    def batch(self, group: Any) -> Batch:
        """The batch of a group, on the worker's device."""
        ...

    def updated(self) -> None:
        """Called after every change of the weights."""
        ...

    def weights(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Copies of what is left of a run, whole and on the CPU, by name. ``masters``: the trained weights in float32.

        All workers must call it.
        """
        ...

    def write(self, weights: Mapping[str, Tensor], folder: Path, *, last: bool) -> dict[str, Any]:
        """Writes what :meth:`weights` gave as it is served, and returns what the manifest says beyond."""
        ...

    def measure(self) -> Measured | None:
        """How good it is; none where the task cannot tell."""
        ...


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
        torch.nn.utils.clip_grad_norm_(self.masters, clip, foreach=True if self.masters[0].is_cuda else None)
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
            "masters": [whole(m) for m in self.masters],
            "state": [{name: whole(value) for name, value in one.items()} for one in state],
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


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be shared out, on the CPU. All workers must call it."""
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


def train(
    make: Callable[[torch.device], Task],
    config: RunConfig,
    settings: Settings,
    checkpoints: Checkpoints,
    report: Callable[[Report], None] = lambda _: None,
    command: Sequence[str] = (),
) -> None:
    """Trains, and leaves the result as the last checkpoint: see :func:`export`. Goes on from the newest one.

    Every worker of an initialised process group calls it with the same arguments; ``report`` is called in the first
    one alone. ``command`` is what the manifest names as such.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    task = make(device)
    if config.compile:
        for layer in task.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)
    objective: Any = task.objective
    if size > 1 and task.shared_out:
        _share_out(task)
    elif size > 1:
        objective = nn.parallel.DistributedDataParallel(objective)
    parameters = [p for p in task.objective.parameters() if p.requires_grad]
    optimizer = MasterAdamW(parameters, config.learning_rate, config.weight_decay)

    now = _Progress()
    best: dict[str, Tensor] = {}
    with checkpoints.latest() as found:
        if found is not None:
            state = torch.load(found / _STATE, weights_only=True)
            optimizer.load_state_dict(state.pop("optimizer"))
            now = _Progress(**state)
            if (found / _BEST).is_file():
                best = load_file(found / _BEST)
    task.updated()

    def save(*, last: bool = False) -> None:
        # Here, and not in `write`: what is shared out is gathered by all workers together.
        state = {"optimizer": optimizer.state_dict(), **asdict(now)}
        given = best or task.weights(optimizer.masters)

        def write(folder: Path) -> None:
            torch.save(state, folder / _STATE)
            if best:
                save_file(best, folder / _BEST)
            manifest = _manifest(config, settings, task.data, size) | {"command": list(command)}
            manifest |= {"history": now.history} | task.write(given, folder, last=last)
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

        checkpoints.save({"step": now.step, "tokens": now.tokens, "seconds": now.seconds}, write)

    def tell(rate: float, dev: dict[str, float] | None, scores: Measured | None) -> None:
        nonlocal best
        if now.losses:
            loss = sum(now.losses) / len(now.losses)
            now.losses.clear()
        else:  # no step since the last line, of which this is the rest
            part = now.history.pop()
            loss, rate, dev = (part[name] for name in ("loss", "learning_rate", "dev"))
        line = Report(now.step, now.tokens, now.seconds, loss, rate, dev, *(scores or ()))
        now.history.append(asdict(line))
        if scores is not None:
            mean = sum(scores.f1.values()) / len(scores.f1)
            now.worse = 0 if mean > now.best else now.worse + 1
            if mean > now.best:
                now.best, best = mean, task.weights(optimizer.masters)
        if rank == 0:
            report(line)

    # The order is a function of the seed: worker r of n takes every n-th group from the r-th, after those seen.
    groups = islice(task.groups(), now.step * config.accumulate * size + rank, None, size)
    before, begun, saved = now.seconds, time.monotonic(), now.seconds
    while (progress := max(now.seconds / (60 * config.minutes), now.tokens / config.max_tokens)) < 1.0:
        if config.patience and now.worse >= config.patience:
            break
        warm = min(1.0, (now.step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        rate = config.learning_rate * warm * min(1.0, (1.0 - progress) / config.cooldown)
        loss, tokens = _step(objective, (task.batch(next(groups)) for _ in range(config.accumulate)), config.accumulate)
        optimizer.step(rate, config.clip)
        task.updated()
        # The first worker's clock is everybody's, so that all of them end at the same step.
        told = _sum([loss / size, tokens, 0.0 if rank else before + time.monotonic() - begun], device)
        now.losses.append(told[0])
        now.step, now.tokens, now.seconds = now.step + 1, now.tokens + round(told[1]), told[2]
        if not math.isfinite(told[0]):
            raise TrainingError("learning_rate: the loss is no longer finite; lower it")
        due = config.measure_every and now.step % config.measure_every == 0
        if now.step % 10 == 0 or due:
            dev = _dev_loss(objective, task.dev) if now.step % config.dev_every == 0 else None
            tell(rate, dev, _measured(objective, task, rank) if due else None)
        if now.seconds - saved > 60 * config.save_minutes:
            saved = now.seconds
            save()
    # The last weights are mostly the best. By the history, which all workers have, also those of a run that had ended.
    measured = now.history and now.history[-1]["step"] == now.step and now.history[-1]["f1"] is not None
    if config.measure_every and not measured and (scores := _measured(objective, task, rank)) is not None:
        tell(0.0, None, scores)
    save(last=True)


def _share_out(task: Task) -> None:
    """Each worker keeps its share of every layer (FSDP2), in place; what is outside of them stays whole once used."""
    from torch.distributed.fsdp import fully_shard

    for layer in task.layers:
        fully_shard(layer)
    fully_shard(task.objective, reshard_after_forward=False)


def _step(objective: Any, batches: Iterator[Batch], count: int) -> tuple[float, int]:
    """Gradients of a step of so many batches; the worker's mean loss and tokens."""
    total, tokens = 0.0, 0
    for i, batch in enumerate(batches, 1):
        quiet = objective.no_sync() if i < count and hasattr(objective, "no_sync") else contextlib.nullcontext()
        with quiet:
            loss = objective(batch) / count
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
def _dev_loss(objective: Any, batches: Mapping[str, Sequence[Batch]]) -> dict[str, float]:
    """Every worker computes the same: where the model is shared out, none can do without the others."""
    return {name: sum(objective(batch).item() for batch in found) / len(found) for name, found in batches.items()}


def _measured(objective: Any, task: Task, rank: int) -> Measured | None:
    """Scores on the dev splits: by the first worker alone, but by all where each has only a share of the model."""
    shared_out = hasattr(objective, "unshard")
    told: list[Any] = [None]
    if rank == 0 or shared_out:
        if shared_out:
            objective.unshard()
        objective.eval()
        with torch.compiler.set_stance("force_eager"):  # its shapes are not those of the batches
            told = [task.measure()]
        objective.train()
        if shared_out:
            objective.reshard()
    if dist.is_initialized():
        dist.broadcast_object_list(told)
    scores: Measured | None = told[0]
    return scores


def _manifest(config: RunConfig, settings: Settings, data: dict[str, Any], workers: int) -> dict[str, Any]:
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
