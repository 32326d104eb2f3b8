"""The manifests as kustomize renders them, and the pods in them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("cpu", "gpu", "test")
RENDERED = (*(f"overlays/{name}" for name in OVERLAYS), "kafka")
FILES = ("jobs/training.yaml", "jobs/backfill.yaml")

Manifest = dict[str, Any]


@functools.cache
def _built(folder: str) -> str:
    return subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / folder)], check=True, capture_output=True, text=True
    ).stdout


def manifests(place: str) -> list[Manifest]:
    """Of a folder with a kustomization, or of a file; in CI there has to be a kubectl for the former."""
    if place.endswith(".yaml"):
        return list(yaml.safe_load_all((ROOT / "k8s" / place).read_text()))
    if shutil.which("kubectl") is None and "CI" not in os.environ:
        pytest.skip("no kubectl: nothing renders the manifests")
    return list(yaml.safe_load_all(_built(place)))


def one(place: str, kind: str, name: str = "biobracket") -> Manifest:
    """The manifest of a kind and a name; a name that a generator made has a digest behind it."""
    (found,) = [
        each
        for each in manifests(place)
        if each["kind"] == kind
        and (each["metadata"]["name"] == name or (kind == "ConfigMap" and _made(each["metadata"]["name"], name)))
    ]
    return found


def _made(given: str, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}-[0-9a-z]{{10}}", given) is not None


def cluster(manifest: Manifest) -> dict[str, Any]:
    """The Ray cluster of a RayService or RayJob."""
    spec = manifest["spec"]
    found: dict[str, Any] = spec["rayClusterConfig"] if manifest["kind"] == "RayService" else spec["rayClusterSpec"]
    return found


def pods(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The specification of each pod that a manifest leads to, with the sidecar that KubeRay adds to a head."""
    if manifest["kind"] in ("RayService", "RayJob"):
        ray = cluster(manifest)
        head = dict(ray["headGroupSpec"]["template"]["spec"])
        if ray.get("enableInTreeAutoscaling"):
            options = ray["autoscalerOptions"]
            sidecar = {"name": "autoscaler", "image": head["containers"][0]["image"]}
            sidecar |= {name: options[name] for name in ("securityContext", "resources") if name in options}
            head["containers"] = [*head["containers"], sidecar]
        yield head
        yield from (group["template"]["spec"] for group in ray.get("workerGroupSpecs", ()))
        if "submitterPodTemplate" in manifest["spec"]:
            yield manifest["spec"]["submitterPodTemplate"]["spec"]
    elif manifest["kind"] in ("StatefulSet", "Deployment", "Job"):
        yield manifest["spec"]["template"]["spec"]
