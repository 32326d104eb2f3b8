"""A worker of a run with several, for tests: importable by name, which a process that is spawned needs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from shared.settings import Settings
from training.config import GeneratorConfig
from training.generator.task import train
from training.tuning.checkpoints import FolderCheckpoints


class FirstOnly(FolderCheckpoints):
    """Only the first worker writes."""

    def save(self, metrics, write):  # type: ignore[no-untyped-def]
        if dist.get_rank() == 0:
            super().save(metrics, write)


def score(model: object) -> dict[str, float]:
    """An F1 that costs nothing: what is tested is who takes part."""
    return {"toy": 0.5}


def worker(rank: int, size: int, rendezvous: str, config: GeneratorConfig, settings: Settings, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    try:
        train(config, settings, FirstOnly(out / "checkpoint"), measure=score)
    finally:
        dist.destroy_process_group()
