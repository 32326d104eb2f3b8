"""The training loop: steps, losses and scores on dev, checkpoints, resuming.

It trains a :class:`Task`, such as those of :mod:`training.generator.task` and :mod:`training.selector.task`.
:func:`train` is a plain function that every worker of a run calls; with one worker it needs neither Ray nor a process
group (:mod:`training.job` is the Ray Train job around it).
"""

from __future__ import annotations

import contextlib
import math
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.settings import Settings
from training.config import RunConfig, TrainingError
from training.tuning.checkpoints import read_state, write_state
from training.tuning.graphs import GraphedSteps
from training.tuning.optimizer import MasterAdamW

_PACKAGES = ("biobracket", "torch", "transformers", "peft")
_STEPS_PER_REPORT = 10


@dataclass(frozen=True)
class Progress:
    """One line of progress; ``tokens`` are those of all workers, ``loss`` is the mean since the line before."""

    step: int
    tokens: int
    seconds: float
    loss: float
    learning_rate: float
    dev: dict[str, float] | None = None
    f1: dict[str, float] | None = None
    more: dict[str, dict[str, float]] | None = None  # further measures on dev, by name and corpus


class Measurements(NamedTuple):
    """Scores on the dev splits by corpus, higher being better, and further measures by name and corpus."""

    f1: dict[str, float]
    more: dict[str, dict[str, float]] | None = None


class Checkpoints(Protocol):
    """Where a run keeps what it resumes from."""

    def latest(self) -> contextlib.AbstractContextManager[Path | None]:
        """The folder of the newest checkpoint, valid while the context lasts; None if there is none."""
        ...

    def save(self, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        """Keeps what ``write`` puts into the folder it is given. All workers call it; the first one's is kept."""
        ...


class Batch(Protocol):
    """The input of one forward and backward pass."""

    @property
    def tokens(self) -> int:
        """Tokens in the batch, without padding."""
        ...


class Task(Protocol):
    """What a run trains. Every worker makes its own from the same configuration."""

    @property
    def objective(self) -> nn.Module:
        """Maps a batch to its mean loss; the parameters to train require gradients."""
        ...

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The layers of the model, which are compiled or sharded one by one."""
        ...

    @property
    def shared_out(self) -> bool:
        """Whether several workers shard the model (FSDP) rather than each holding all of it (DDP)."""
        ...

    @property
    def data(self) -> dict[str, Any]:
        """What the manifest says about the corpora."""
        ...

    @property
    def dev(self) -> Mapping[str, Sequence[Batch]]:
        """Batches of each dev split."""
        ...

    def groups(self) -> Iterator[Any]:
        """An endless stream of groups, each the content of one batch; a function of the seed."""
        ...

    def batch(self, group: Any) -> Batch:
        """The batch of a group, on the worker's device."""
        ...

    def updated(self) -> None:
        """Called after every change of the weights."""
        ...

    def weights(self, masters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Copies of the weights to keep, unsharded and on the CPU, by name. ``masters``: the trained ones in float32.

        All workers must call it.
        """
        ...

    def write(self, weights: Mapping[str, Tensor], folder: Path, *, last: bool) -> dict[str, Any]:
        """Writes what :meth:`weights` returned in the format it is served in; returns additions to the manifest."""
        ...

    def measure(self) -> Measurements | None:
        """Scores on the dev splits; None where the task has none."""
        ...


def train(
    make: Callable[[torch.device], Task],
    config: RunConfig,
    settings: Settings,
    checkpoints: Checkpoints,
    report: Callable[[Progress], None] = lambda _: None,
    command: Sequence[str] = (),
) -> None:
    """Trains, resuming from the newest checkpoint; the last checkpoint holds the result, see
    :func:`training.tuning.checkpoints.export`.

    Every worker of an initialised process group calls it with the same arguments; ``report`` is called only in the
    first one. ``command`` is the command line to record in the manifest.
    """
    random.seed(config.seed)
    torch.manual_seed(config.seed)
    worker = _Worker.current()
    task = make(worker.device)
    trainer = _Trainer(task, config, settings, checkpoints, report, command, worker)
    trainer.resume()
    trainer.run()
    trainer.finish()


class _Worker(NamedTuple):
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def current(cls) -> _Worker:
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        cuda = torch.cuda.is_available()
        return cls(rank, size, torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all workers."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]


@dataclass
class _RunState:
    """What a checkpoint holds besides weights and optimiser; the same in every worker."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float = -1.0
    worse: int = 0  # scores since the best one
    losses: list[float] = field(default_factory=list)  # since the last report

    def done(self, config: RunConfig) -> float:
        """The completed share of the run, which ends at 1."""
        return max(self.seconds / (60 * config.minutes), self.tokens / config.max_tokens)


def learning_rate(config: RunConfig, step: int, done: float) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, constant, then a linear cooldown to zero.

    ``done``: the completed share of the run, 0..1.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * warm * min(1.0, (1.0 - done) / config.cooldown)


class _Trainer:
    """A run of a task in one worker."""

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        settings: Settings,
        checkpoints: Checkpoints,
        report: Callable[[Progress], None],
        command: Sequence[str],
        worker: _Worker,
    ) -> None:
        self._task, self._config, self._settings, self._worker = task, config, settings, worker
        self._checkpoints, self._report, self._command = checkpoints, report, command
        self._objective = _parallel(task, config, worker)
        parameters = [p for p in task.objective.parameters() if p.requires_grad]
        self._optimizer = MasterAdamW(parameters, config.learning_rate, config.weight_decay)
        self._graphed: GraphedSteps | None = None
        if config.graphs:
            if worker.device.type != "cuda":
                raise TrainingError("graphs: there is no GPU to record the steps of; set it to false")
            self._graphed = GraphedSteps(task.objective, self._optimizer, task.updated, config.clip)
        self._now = _RunState()
        self._rate = 0.0
        self._best: dict[str, Tensor] = {}  # weights with the best scores; empty before the first measurement

    def resume(self) -> None:
        """Restores the newest checkpoint, if there is one."""
        with self._checkpoints.latest() as found:
            if found is not None:
                state, self._best = read_state(found)
                self._optimizer.load_state_dict(state.pop("optimizer"))
                self._now = _RunState(**state)
        self._task.updated()

    def run(self) -> None:
        """Trains until minutes, tokens or patience are used up."""
        config, now = self._config, self._now
        # The order is a function of the seed. Worker r of n takes every n-th group from the r-th after those seen.
        seen = now.step * config.accumulate * self._worker.size
        groups = islice(self._task.groups(), seen + self._worker.rank, None, self._worker.size)
        before, begun, saved = now.seconds, time.monotonic(), now.seconds
        while (done := now.done(config)) < 1.0:
            if config.patience and now.worse >= config.patience:
                break
            self._rate = rate = learning_rate(config, now.step, done)
            loss, tokens = self._step(groups, rate)
            self._count(loss, tokens, before + time.monotonic() - begun)
            measure = bool(config.measure_every) and now.step % config.measure_every == 0
            if now.step % _STEPS_PER_REPORT == 0 or measure:
                dev = self._dev_loss() if now.step % config.dev_every == 0 else None
                self._record(rate, dev, self._measured() if measure else None)
            if now.seconds - saved > 60 * config.save_minutes:
                saved = now.seconds
                self._save()

    def finish(self) -> None:
        """Measures the last weights, which are usually the best, and saves the result."""
        # Decided by the history, which all workers have, so that it also holds for a run that had already ended.
        history = self._now.history
        measured = history and history[-1]["step"] == self._now.step and history[-1]["f1"] is not None
        scores = self._measured() if self._config.measure_every and not measured else None
        short = bool(self._now.losses) and not history  # the run ended before the first report
        if short or scores is not None:
            self._record(self._rate, self._dev_loss() if short else None, scores)
        self._save(last=True)

    def _step(self, groups: Iterator[Any], rate: float) -> tuple[float, int]:
        """One optimiser step over ``accumulate`` batches; this worker's mean loss, and its tokens."""
        count, total, tokens = self._config.accumulate, 0.0, 0
        if self._graphed is not None:
            batch = self._task.batch(next(groups))
            return self._graphed.step(batch, rate), batch.tokens
        for i in range(1, count + 1):
            batch = self._task.batch(next(groups))
            # DDP need not reduce gradients before the last batch.
            unsynced = i < count and hasattr(self._objective, "no_sync")
            with self._objective.no_sync() if unsynced else contextlib.nullcontext():
                loss = self._objective(batch) / count
                loss.backward()
            total += loss.item()
            tokens += batch.tokens
        self._optimizer.set_rate(rate)
        self._optimizer.step(self._config.clip)
        self._task.updated()
        return total, tokens

    def _count(self, loss: float, tokens: int, seconds: float) -> None:
        """Adds a step of all workers to the state. Raises TrainingError if the loss is no longer finite."""
        # The first worker's clock counts for all, so that all end at the same step.
        clock = 0.0 if self._worker.rank else seconds
        mean, tokens_of_all, elapsed = self._worker.sum([loss / self._worker.size, tokens, clock])
        now = self._now
        now.losses.append(mean)
        now.step, now.tokens, now.seconds = now.step + 1, now.tokens + round(tokens_of_all), elapsed
        if not math.isfinite(mean):
            raise TrainingError("learning_rate: the loss is no longer finite; lower it")

    def _record(self, rate: float, dev: dict[str, float] | None, scores: Measurements | None) -> None:
        """Adds a line to the history, keeps the weights if they are the best, and reports the line."""
        now = self._now
        if now.losses:
            loss = sum(now.losses) / len(now.losses)
            now.losses.clear()
        else:  # no step since the last line: replace it with one that has the scores
            last = now.history.pop()
            loss, rate, dev = (last[name] for name in ("loss", "learning_rate", "dev"))
        line = Progress(now.step, now.tokens, now.seconds, loss, rate, dev, *(scores or ()))
        now.history.append(asdict(line))
        if scores is not None:
            mean = sum(scores.f1.values()) / len(scores.f1)
            now.worse = 0 if mean > now.best else now.worse + 1
            if mean > now.best:
                now.best, self._best = mean, self._task.weights(self._optimizer.masters)
        if self._worker.rank == 0:
            self._report(line)

    @torch.no_grad()
    def _dev_loss(self) -> dict[str, float]:
        """The mean loss on each dev split. Every worker computes all of it: a sharded model needs all of them."""
        return {
            name: sum(self._objective(batch).item() for batch in batches) / len(batches)
            for name, batches in self._task.dev.items()
        }

    def _measured(self) -> Measurements | None:
        """Scores on the dev splits, computed by the first worker only, or by all if the model is sharded."""
        objective, sharded = self._objective, hasattr(self._objective, "unshard")
        found: list[Any] = [None]
        if self._worker.rank == 0 or sharded:
            if sharded:
                objective.unshard()
            objective.eval()
            with torch.compiler.set_stance("force_eager"):  # it has other shapes than the batches
                found = [self._task.measure()]
            objective.train()
            if sharded:
                objective.reshard()
        if dist.is_initialized():
            dist.broadcast_object_list(found)
        scores: Measurements | None = found[0]
        return scores

    def _save(self, *, last: bool = False) -> None:
        now, best = self._now, self._best
        # Gathered here and not in `write`: all workers must take part in unsharding.
        state = {"optimizer": self._optimizer.state_dict(), **asdict(now)}
        weights = best or self._task.weights(self._optimizer.masters)

        def write(folder: Path) -> None:
            manifest = self._manifest() | self._task.write(weights, folder, last=last)
            write_state(folder, state, best, manifest)

        self._checkpoints.save({"step": now.step, "tokens": now.tokens, "seconds": now.seconds}, write)

    def _manifest(self) -> dict[str, Any]:
        """What went into the run, and its history."""
        # An adapter to start from has its own rank and scale, in its configuration.
        hidden = {"storage", "init"} | ({"rank", "alpha"} if self._config.init is not None else set())
        return {
            "config": self._config.model_dump(mode="json", exclude=hidden),
            "base_model": self._settings.base_model,
            "workers": self._worker.size,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "data": self._task.data,
            "command": list(self._command),
            "history": self._now.history,
        }


def _parallel(task: Task, config: RunConfig, worker: _Worker) -> Any:
    """The task's objective, compiled layer by layer if so configured, and spread over the workers if there are more."""
    if config.compile:
        for layer in task.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)
    if worker.size > 1 and task.shared_out:
        from torch.distributed.fsdp import fully_shard

        # FSDP2, in place. What lies outside the layers stays unsharded after its first use.
        for layer in task.layers:
            fully_shard(layer)
        fully_shard(task.objective, reshard_after_forward=False)
    elif worker.size > 1:
        return nn.parallel.DistributedDataParallel(task.objective)
    return task.objective
