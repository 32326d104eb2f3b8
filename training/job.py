"""The Ray Train job around :func:`training.tuning.loop.train`: parallel, fault-tolerant workers.

Ray starts the workers in one process group, stores the checkpoints they report, and restarts all of them from the
newest one when a worker is lost.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.model.base_model import BaseModelError
from shared.model.digests import check_sums
from shared.runtime.cpus import cpus, use_threads
from shared.runtime.ray_node import on_loopback
from shared.settings import Settings
from training.config import ConfigError, GeneratorConfig, RunConfig, SelectorConfig, TrainingError
from training.data import mixing
from training.data.corpora import CorpusError
from training.generator import task as generator
from training.generator.model import init_folder
from training.generator.task import Measure
from training.selector import task as selector
from training.tuning.checkpoints import FolderCheckpoints, export
from training.tuning.loop import Checkpoints, Progress
from training.tuning.progress import TensorBoard

if TYPE_CHECKING:
    from ray.train import TrainingFailedError


class RayCheckpoints:
    """Checkpoints kept by Ray Train in the run's storage."""

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """See :class:`training.tuning.loop.Checkpoints`."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def save(self, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        """See :class:`training.tuning.loop.Checkpoints`; waits for all workers."""
        import ray.train

        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _worker(given: dict[str, Any]) -> None:
    import ray.train
    import torch

    config: RunConfig = given["config"]
    if not config.gpu:
        local = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(max(1, cpus() // local))
    else:
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    with closing(TensorBoard(given["board"])) as board:
        _train(config, given["settings"], RayCheckpoints(), board, given["measure"], given["command"])


def _train(
    config: RunConfig,
    settings: Settings,
    checkpoints: Checkpoints,
    board: TensorBoard,
    measure: Measure | None,
    command: list[str],
) -> None:
    if isinstance(config, SelectorConfig):
        selector.train(config, settings, checkpoints, _reporter(board), command)
    elif isinstance(config, GeneratorConfig):
        generator.train(config, settings, checkpoints, _reporter(board), measure, command)
    else:
        raise TypeError(type(config).__name__)


def _check(config: RunConfig, settings: Settings) -> None:
    """Checks corpora, their labels and the initial adapter once, before any worker starts.

    Raises :class:`training.data.corpora.CorpusError`, :class:`training.config.ConfigError` or
    :class:`shared.errors.DigestError`.
    """
    if config.init is not None:
        init_folder(config.init)
        check_sums(config.init, settings.cache)
    mixing.check(config, settings)


def run_here(config: RunConfig, settings: Settings, out: Path, measure: Measure | None = None) -> Path:
    """Like :func:`run`, but in this process, without Ray or other workers; ``storage`` must be a folder."""
    if config.workers > 1:
        raise TrainingError("workers: without Ray there is only one; set workers to 1")
    _check(config, settings)
    folder = Path(config.storage or out) / "checkpoint"
    use_threads(cpus())
    with closing(TensorBoard(str(out / "tensorboard"))) as board:
        _train(config, settings, FolderCheckpoints(folder), board, measure, _command())
    return export(folder, out)


def _reporter(board: TensorBoard) -> Callable[[Progress], None]:
    def report(line: Progress) -> None:
        board.add(line)
        # Ray forwards standard error to the terminal that started the job, but would forward standard output twice.
        sys.stderr.write(line_of(line) + "\n")
        sys.stderr.flush()

    return report


def _command() -> list[str]:
    """The command line of the process that starts the job, not of its workers."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def line_of(progress: Progress) -> str:
    """Progress as a line of text."""
    dev = "".join(f", dev {name} {loss:.4f}" for name, loss in (progress.dev or {}).items())
    f1 = "".join(f", F1 {name} {score:.4f}" for name, score in (progress.f1 or {}).items())
    rate = progress.tokens / progress.seconds if progress.seconds else 0.0
    return (
        f"step {progress.step}: {progress.tokens} tokens, {progress.seconds:.0f} s, {rate:.0f} tokens/s, "
        f"loss {progress.loss:.4f}{dev}{f1}"
    )


def run(config: RunConfig, settings: Settings, out: Path, measure: Measure | None = None) -> Path:
    """Runs the job on the cluster that RAY_ADDRESS names, or on this machine; returns the folder of the model.

    Resumes an unfinished run with the same ``out``. Raises :class:`TrainingError` if it fails; errors in configuration
    or corpora are raised before any worker starts.
    """
    _check(config, settings)
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    out = out.resolve()
    ours = not ray.is_initialized()
    if ours:
        if "RAY_ADDRESS" in os.environ:
            ray.init(configure_logging=False)
        else:
            ray.init(**on_loopback(), num_cpus=max(config.workers + 1, cpus()))
    try:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "config": config,
                "settings": settings,
                "measure": measure,
                "board": str(out / "tensorboard"),
                "command": _command(),
            },
            torch_config=TorchConfig(backend="nccl" if config.gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=config.gpu),
            run_config=ray.train.RunConfig(
                name=out.name,
                storage_path=config.storage or str(out / "checkpoints"),
                failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(f"training failed more than {config.max_failures} times: {_causes(error)}") from None
        if result.checkpoint is None:
            raise TrainingError("training ended without a checkpoint; give it more `minutes`")
        with result.checkpoint.as_directory() as folder:
            return export(Path(folder), out)
    finally:
        if ours:
            ray.shutdown()


def _causes(error: TrainingFailedError) -> str:
    """What each worker raised, with the message only of our own errors: others may quote the corpora."""
    causes = []
    for rank, cause in getattr(error, "worker_failures", {}).items():
        cause = getattr(cause, "_base_exc", cause)  # Ray wraps what a worker raised
        known = isinstance(cause, (BaseModelError, ConfigError, CorpusError, TrainingError))
        causes.append(f"worker {rank}: {cause if known else type(cause).__name__}")
    return "; ".join(causes) or type(error).__name__
