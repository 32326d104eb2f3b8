"""The test overlay with a tiny model: a kustomization on top of it, as a user's own would be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import models
from tests.support.manifests import ROOT

OVERLAY = ROOT / "k8s" / "overlays" / "test"
NAMESPACE = "biobracket"
NAME = "biobracket"
_SPEC = "/spec/rayClusterConfig"
_GROUPS = 3


def write(folder: Path, made: Path, adapter: str, **given: str) -> Path:
    """A folder to `kubectl apply -k`: the models of ``made``, with one of the adapters; ``given``: further settings."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "BASE_MODEL": f"{models.MOUNT}/base",
        "ADAPTER": f"{models.MOUNT}/{adapter}",
        "GENERATION_THREADS": "1",
        # What was extracted once is computed anew where Redis has lost it: that is compared.
        "PIPELINE_LOCAL_CACHE_MIB": "0",
        **given,
    }
    patch = [
        {"op": "add", "path": f"{place}/template/spec/{at}/-", "value": value}
        for place in (f"{_SPEC}/headGroupSpec", *(f"{_SPEC}/workerGroupSpecs/{n}" for n in range(_GROUPS)))
        for at, value in (
            ("volumes", models.as_volume(made, "tiny")),
            ("containers/0/volumeMounts", {"name": "tiny", "mountPath": models.MOUNT, "readOnly": True}),
        )
    ]
    kustomization: Mapping[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(OVERLAY, folder.resolve())],
        "configMapGenerator": [
            {
                "name": "biobracket",
                "namespace": NAMESPACE,
                "behavior": "merge",
                "literals": [f"BIOBRACKET_{name}={value}" for name, value in settings.items()],
            }
        ],
        "patches": [{"target": {"kind": "RayService", "name": NAME}, "patch": json.dumps(patch)}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder
