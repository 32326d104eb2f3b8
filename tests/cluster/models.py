"""A tiny base model with two adapters, whose results differ; small enough for a ConfigMap."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from shared.model.base_model import load_base
from shared.model.scheme import SCHEME, SCHEME_FILE
from shared.settings import Settings
from tests.support.tiny import make_tiny_model

ADAPTERS = ("first", "second")
MOUNT = "/tiny"
# Kubernetes takes no larger objects.
_LARGEST = 1_000_000


def make_models(folder: Path) -> Path:
    """``base`` and a folder for each of :data:`ADAPTERS`, whose random weights are as large as the base's."""
    base = make_tiny_model(folder / "base")
    for seed, name in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        )
        model = get_peft_model(load_base(Settings(base_model=str(base)), torch.float32), config)
        model.save_pretrained(str(folder / name))
        (folder / name / SCHEME_FILE).write_text(json.dumps({"scheme": SCHEME}))
    return folder


def as_config_map(folder: Path, name: str, namespace: str) -> dict[str, Any]:
    """The files; a key cannot hold a slash, see :func:`as_volume`."""
    data = {_key(folder, file): base64.b64encode(file.read_bytes()).decode() for file in _files(folder)}
    assert sum(map(len, data.values())) < _LARGEST
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "binaryData": data,
    }


def as_volume(folder: Path, name: str) -> dict[str, Any]:
    """That ConfigMap as a pod's volume, with the folders as they were."""
    items = [{"key": _key(folder, file), "path": str(file.relative_to(folder))} for file in _files(folder)]
    return {"name": "tiny", "configMap": {"name": name, "items": items}}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "README.md")


def _key(folder: Path, file: Path) -> str:
    return ".".join(file.relative_to(folder).parts)
