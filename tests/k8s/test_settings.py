"""The settings of each overlay, and what is made of them: placement, threads, grace periods."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from services.cli.console import configs
from services.ingest.config import IngestConfig
from services.replica_config import ComputeReplicaConfig, ReplicaConfig
from tests.support.manifests import OVERLAYS, ROOT, cluster, one
from tests.support.serving import fits

# What Ray takes to drain a node, see KubeRay's and Ray's termination of pods.
DRAIN_S = 30
each_overlay = pytest.mark.parametrize("overlay", [f"overlays/{name}" for name in OVERLAYS])


def known_settings() -> set[str]:
    """Environment variables; reads them: an invalid value raises here."""
    return {
        f"{config.model_config.get('env_prefix', '')}{field}".upper()
        for config in configs()
        for field in type(config).model_fields
    }


def given(overlay: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    data: dict[str, str] = one(overlay, "ConfigMap")["data"]
    for variable, value in data.items():
        monkeypatch.setenv(variable, value)
    return data


def ray(overlay: str) -> dict[str, Any]:
    return cluster(one(overlay, "RayService"))


def groups(overlay: str) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in ray(overlay)["workerGroupSpecs"]}


def cpus(group: dict[str, Any]) -> float:
    """Of a pod, as Ray counts them: KubeRay tells it the limit where `num-cpus` does not."""
    (container,) = group["template"]["spec"]["containers"]
    return float(group["rayStartParams"].get("num-cpus") or container["resources"]["limits"]["cpu"])


def offered(group: dict[str, Any]) -> set[str]:
    return set(json.loads(json.loads(group["rayStartParams"]["resources"])))


@each_overlay
def test_every_setting_exists_and_is_valid(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(given(overlay, monkeypatch)) <= known_settings()


@each_overlay
def test_serve_runs_the_application_of_the_file(overlay: str) -> None:
    text = one(overlay, "RayService")["spec"]["serveConfigV2"]
    assert text == (ROOT / "k8s" / "base" / "serve.yaml").read_text()
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    module, name = application.import_path.split(":")
    assert isinstance(getattr(importlib.import_module(module), name)(), Application)


@each_overlay
def test_ray_is_the_version_that_is_installed(overlay: str) -> None:
    assert ray(overlay)["rayVersion"] == version("ray")


@each_overlay
def test_every_placement_fits_its_group(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given(overlay, monkeypatch)
    services = [config for config in configs() if isinstance(config, ReplicaConfig)]
    assert ray(overlay)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    placed = set()
    for name, group in groups(overlay).items():
        assert offered(group) == {name}
        here = [config for config in services if set(config.resources) == {name}]
        placed |= {type(config) for config in here}

        def sizes(replicas: Callable[[ReplicaConfig], int], here: list[ReplicaConfig] = here) -> list[float]:
            return [config.reserved_cpus for config in here for _ in range(replicas(config))]

        assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]
        assert fits(sizes(lambda config: config.min_replicas), [cpus(group)] * group["replicas"]), name
        assert fits(sizes(lambda config: config.max_replicas), [cpus(group)] * group["maxReplicas"]), name
    assert placed == {type(config) for config in services}


@each_overlay
def test_no_engine_has_more_threads_than_its_reserved_share_of_a_pod(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(overlay, monkeypatch)
    for config in configs():
        if isinstance(config, ComputeReplicaConfig):
            (name,) = config.resources
            assert config.reserved_cpus <= cpus(groups(overlay)[name])
            assert overlay == "overlays/test" or config.replica_threads <= config.reserved_cpus


def test_a_replica_has_the_gpus_of_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    given("overlays/gpu", monkeypatch)
    (container,) = groups("overlays/gpu")["generation"]["template"]["spec"]["containers"]
    (config,) = [each for each in configs() if type(each).__name__ == "GenerationConfig"]
    assert config.num_gpus == float(container["resources"]["limits"]["nvidia.com/gpu"])  # type: ignore[attr-defined]


@each_overlay
def test_a_pod_lives_on_until_its_replicas_have_stopped(overlay: str) -> None:
    stop_s = IngestConfig().drain_s + 15.0  # as services/ingest/deployment.py has it
    for group in groups(overlay).values():
        pod = group["template"]["spec"]
        before_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > before_s + DRAIN_S + stop_s


@each_overlay
def test_only_the_newest_cluster_consumes(overlay: str) -> None:
    for group in groups(overlay).values():
        (container,) = group["template"]["spec"]["containers"]
        (name,) = [each for each in container["env"] if each["name"] == "BIOBRACKET_INGEST_DEPLOYMENT"]
        assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['ray.io/cluster']"


@each_overlay
def test_a_changed_setting_is_an_upgrade(overlay: str) -> None:
    """The name of the ConfigMap holds a digest, and every pod names it."""
    name = one(overlay, "ConfigMap")["metadata"]["name"]
    assert name != "biobracket"
    for group in (ray(overlay)["headGroupSpec"], *groups(overlay).values()):
        (container,) = group["template"]["spec"]["containers"]
        assert {"configMapRef": {"name": name}} in container["envFrom"]


@each_overlay
def test_nobody_gets_in_without_the_token(overlay: str) -> None:
    assert ray(overlay)["authOptions"] == {"mode": "token", "secretName": "biobracket-ray"}
    assert ray(overlay)["gcsFaultToleranceOptions"]["redisPassword"]
    assert "headService" not in ray(overlay)["headGroupSpec"]  # KubeRay's own stays in the cluster


def test_every_setting_of_the_document_exists() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    assert set(re.findall(r"BIOBRACKET_\w+", text)) <= known_settings()


def test_files_of_the_base_are_used() -> None:
    base = ROOT / "k8s" / "base"
    used = set(re.findall(r"[\w.-]+\.(?:yaml|json|env)", (base / "kustomization.yaml").read_text()))
    assert {file.name for file in base.iterdir()} - {"kustomization.yaml"} <= used


def test_secrets_are_in_no_file() -> None:
    for overlay in ("overlays/cpu", "overlays/gpu"):
        data = one(overlay, "ConfigMap")["data"]
        assert not [name for name in data if name in ("BIOBRACKET_REDIS", "BIOBRACKET_TOKEN", "BIOBRACKET_AUDIT_KEY")]
    assert not list(Path(ROOT / "k8s").rglob("*.key"))
