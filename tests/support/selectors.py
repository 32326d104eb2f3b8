"""Selectors trained on the corpus of :mod:`tests.support.generators`."""

from __future__ import annotations

from tests.support import generators
from training.config import SelectorConfig
from training.selector.task import train
from training.tuning.checkpoints import FolderCheckpoints, export


def config(**changes):
    given = generators.config().model_dump(include=set(SelectorConfig.model_fields))
    return SelectorConfig.model_validate(given | {"size": 16, "hidden": 32} | changes)


def trained(out, settings, report=lambda _: None, **changes):
    train(config(**changes), settings, FolderCheckpoints(out / "checkpoint"), report)
    return export(out / "checkpoint", out)
