"""Trains a generator of the scheme that its configuration names."""

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
    """:func:`training.tuning.loop.train` of a generator; ``measure`` is what ``measure_every`` calls."""
    task = LabelledTask if config.scheme == "labelled" else GeneratorTask
    loop.train(lambda device: task(config, settings, device, measure), config, settings, checkpoints, report, command)
