"""Trains a generator of the scheme named in its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shared.settings import Settings
from training.config import GeneratorConfig
from training.generator.labelled import LabelledTask
from training.generator.task import GeneratorTask, Measure
from training.tuning import loop
from training.tuning.loop import Checkpoints, Progress


def train(
    config: GeneratorConfig,
    settings: Settings,
    checkpoints: Checkpoints,
    report: Callable[[Progress], None] = lambda _: None,
    measure: Measure | None = None,
    command: Sequence[str] = (),
) -> None:
    """:func:`training.tuning.loop.train` for a generator; ``measure`` is called as set by ``measure_every``."""
    task = LabelledTask if config.scheme == "labelled" else GeneratorTask
    loop.train(lambda device: task(config, settings, device, measure), config, settings, checkpoints, report, command)
