"""Checkpoints of a training run: their content, and a folder that keeps the newest."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.model.digests import write_sums

MANIFEST = "training.json"
_STATE = "state.pt"
_BEST = "best.safetensors"


def write_state(folder: Path, state: Mapping[str, Any], best: dict[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Writes what a run resumes from, the best weights so far if there are any, and the manifest."""
    torch.save(dict(state), folder / _STATE)
    if best:
        save_file(best, folder / _BEST)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state and the best weights (empty if there are none) written by :func:`write_state`."""
    state: dict[str, Any] = torch.load(folder / _STATE, weights_only=True)
    return state, load_file(folder / _BEST) if (folder / _BEST).is_file() else {}


class FolderCheckpoints:
    """Keeps the newest checkpoint in a folder, replaced by renaming: a killed run leaves a complete one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        """See :class:`training.tuning.loop.Checkpoints`."""
        yield self._folder if self._folder.is_dir() else None

    def save(self, metrics: dict[str, float], write: Callable[[Path], None]) -> None:
        """See :class:`training.tuning.loop.Checkpoints`."""
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
    """Copies the model and manifest of a checkpoint into ``out``, without what only resuming needs; adds digests."""
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in (_STATE, _BEST):
            shutil.copyfile(file, out / file.name)
    write_sums(out)
    return out
