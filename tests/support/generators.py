"""A corpus that a tiny model learns in seconds, and generators trained on it."""

from __future__ import annotations

import json

from training.config import GeneratorConfig
from training.generator.task import train
from training.tuning.checkpoints import FolderCheckpoints, export

GENES = ["abc", "bcd", "cde", "def", "efg", "fgh"]


def corpus(folder):
    """Every `gene X` names a protein X: learnable by a tiny model in seconds."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(60):
        name = GENES[i % len(GENES)]
        text = f"a gene {name} is" if i % 3 else f"no {name} is"
        at = text.index(name)
        found = [{"start": at, "end": at + 3, "type": "protein", "text": name}] if i % 3 else []
        rows.append({"id": str(i), "text": text, "lang": "en", "entities": found})
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def config(**changes):
    given = {"minutes": 10.0, "max_tokens": 6000, "batch_tokens": 256, "rank": 8, "alpha": 16, "warmup_steps": 2}
    given |= {"corpora": {"toy": {}}, "dev_batches": 1, "dev_every": 10, "precision": "float32"}
    return GeneratorConfig.model_validate(given | changes)


def trained(out, settings, report=lambda _: None, measure=None, **changes):
    checkpoints = FolderCheckpoints(out / "checkpoint")
    train(config(**changes), settings, checkpoints, report, measure)
    return export(out / "checkpoint", out)
