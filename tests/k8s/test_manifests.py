"""The manifests against the code, and against a cluster's schemas where BIOBRACKET_CRDS names a folder of them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from services.cli import cli
from services.cli.console import configs
from services.replica_config import ComputeReplicaConfig, ReplicaConfig
from shared.settings import Settings
from tests.support.serving import fits
from training.config import CONFIGS, GeneratorConfig

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = [
    pytest.param(manifest, id=f"{file.name}-{manifest['kind']}-{manifest['metadata']['name']}")
    for file in sorted((ROOT / "k8s").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text())
]
# Kinds of Kubernetes itself, which no custom resource definition describes.
CORE = {"ConfigMap", "PersistentVolumeClaim"}
SERVING, TRAINING = "biobracket", "biobracket-training"  # of all manifests of one purpose


def manifest(kind: str, name: str = SERVING) -> dict[str, Any]:
    of_kind = [m.values[0] for m in MANIFESTS if m.values[0]["kind"] == kind]
    (found,) = [m for m in of_kind if m["metadata"]["name"] == name]
    return found


def serve_config() -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"]))


def cluster(name: str) -> dict[str, Any]:
    if name == SERVING:
        return manifest("RayService")["spec"]["rayClusterConfig"]
    return manifest("RayJob", name)["spec"]["rayClusterSpec"]


def pods(name: str) -> list[dict[str, Any]]:
    groups = [cluster(name)["headGroupSpec"], *cluster(name)["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def known_settings() -> set[str]:
    """Environment variables; reads them: an invalid value raises here."""
    return {
        f"{config.model_config.get('env_prefix', '')}{field}".upper()
        for config in configs()
        for field in type(config).model_fields
    }


def training_command() -> dict[str, Any]:
    """Arguments of ``biobracket train generator`` as the command itself reads them: what it does not know raises."""
    program, *words = shlex.split(manifest("RayJob", TRAINING)["spec"]["entrypoint"])
    assert (program, words[:2]) == ("biobracket", ["train", "generator"])
    command: Any = typer.main.get_command(cli)
    for word in words[:2]:
        command = command.commands[word]
    return command.make_context("generator", words[2:]).params


def training_config() -> GeneratorConfig:
    given = training_command()
    return GeneratorConfig.load(CONFIGS / f"{given['config_file']}.yaml", given["overrides"])


def test_serve_runs_the_application() -> None:
    (application,) = serve_config().applications
    module, name = application.import_path.split(":")
    assert isinstance(getattr(importlib.import_module(module), name)(), Application)


@pytest.mark.parametrize("name", [SERVING, TRAINING])
def test_every_setting_of_the_config_map_exists_and_is_valid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    given = manifest("ConfigMap", name)["data"]
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert set(given) - {"HF_HOME"} <= known_settings()


def worker_nodes() -> tuple[list[float], list[float]]:
    """CPUs of the pods that replicas run on: of those there are at first, and of the most there may be."""
    (group,) = cluster(SERVING)["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    cpus = float(container["resources"]["limits"]["cpu"])
    assert "num-cpus" not in group["rayStartParams"]  # KubeRay tells Ray the pod's limit
    assert cluster(SERVING)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    return [cpus] * group["replicas"], [cpus] * group["maxReplicas"]


def test_every_placement_fits_the_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in manifest("ConfigMap")["data"].items():
        monkeypatch.setenv(variable, value)
    services = [config for config in configs() if isinstance(config, ReplicaConfig)]
    first, most = worker_nodes()

    def sizes(replicas: Callable[[ReplicaConfig], int]) -> list[float]:
        return [config.reserved_cpus for config in services for _ in range(replicas(config))]

    assert fits(sizes(lambda config: config.min_replicas), first)
    assert fits(sizes(lambda config: 2), first)
    assert fits(sizes(lambda config: 8), most)
    assert fits(sizes(lambda config: config.max_replicas), most)


def test_no_engine_has_more_threads_than_its_reserved_share_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in manifest("ConfigMap")["data"].items():
        monkeypatch.setenv(variable, value)
    for config in configs():
        if isinstance(config, ComputeReplicaConfig):
            assert config.replica_threads <= config.reserved_cpus <= worker_nodes()[0][0]


def test_every_setting_of_the_readme_exists() -> None:
    assert set(re.findall(r"BIOBRACKET_\w+", (ROOT / "k8s" / "README.md").read_text())) <= known_settings()


@pytest.mark.parametrize("name", [SERVING, TRAINING])
def test_every_pod_gets_the_settings(name: str) -> None:
    for pod in pods(name):
        (container,) = pod["containers"]
        assert {"configMapRef": {"name": name}} in container["envFrom"]


def test_every_pod_is_confined() -> None:
    submitter = manifest("RayJob", TRAINING)["spec"]["submitterPodTemplate"]["spec"]
    for pod in [*pods(SERVING), *pods(TRAINING), submitter]:
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", [SERVING, TRAINING])
def test_ray_is_the_version_that_is_installed(name: str) -> None:
    assert cluster(name)["rayVersion"] == version("ray")


def test_each_training_worker_has_a_pod_with_a_gpu() -> None:
    config = training_config()
    (group,) = cluster(TRAINING)["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert config.gpu
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {group["replicas"], group["minReplicas"], group["maxReplicas"]} == {config.workers}
    assert training_command()["on_ray"]


def test_training_steps_are_as_large_as_the_configuration_has_them() -> None:
    config, base = training_config(), GeneratorConfig.load(CONFIGS / f"{training_command()['config_file']}.yaml")
    assert config.workers * config.accumulate == base.workers * base.accumulate
    assert config.parallel == "ddp"  # four-bit weights cannot be shared out


def test_training_has_the_base_model_of_its_configuration() -> None:
    text = (CONFIGS / f"{training_command()['config_file']}.yaml").read_text()
    assert f"BIOBRACKET_BASE_MODEL={manifest('ConfigMap', TRAINING)['data']['BIOBRACKET_BASE_MODEL']}\n" in text


def test_what_training_reads_and_leaves_is_in_a_volume_of_all_pods() -> None:
    claim = manifest("PersistentVolumeClaim", TRAINING)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    data = manifest("ConfigMap", TRAINING)["data"]
    folders = [training_command()["folder"], Path(data["BIOBRACKET_CORPORA"]), Path(data["HF_HOME"])]
    assert training_config().storage is None  # checkpoints are below the first folder
    for pod in pods(TRAINING):
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        (volume,) = pod["volumes"]
        assert (mount["name"], volume["persistentVolumeClaim"]["claimName"]) == (volume["name"], TRAINING)
        assert all(folder.is_relative_to(mount["mountPath"]) for folder in folders)


def test_a_finished_training_job_gives_its_gpus_back() -> None:
    assert manifest("RayJob", TRAINING)["spec"]["shutdownAfterJobFinishes"]


def test_topics_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCUMENTS", "ENTITIES", "DEAD_LETTERS", "FEEDBACK"):
        monkeypatch.delenv(f"BIOBRACKET_TOPIC_{name}", raising=False)
    settings = Settings()
    topics = {m.values[0]["metadata"]["name"] for m in MANIFESTS if m.values[0]["kind"] == "KafkaTopic"}
    assert topics == {
        settings.topic_documents,
        settings.topic_entities,
        settings.topic_dead_letters,
        settings.topic_feedback,
    }


@pytest.mark.parametrize("manifest", [m for m in MANIFESTS if m.values[0]["kind"] not in CORE])
def test_manifest_follows_the_schema_of_its_kind(manifest: dict[str, Any]) -> None:
    folder = os.environ.get("BIOBRACKET_CRDS")
    if not folder:
        pytest.skip("BIOBRACKET_CRDS does not name a folder of custom resource definitions")
    group, served = manifest["apiVersion"].split("/")
    for file in Path(folder).glob("*.yaml"):
        definition = yaml.safe_load(file.read_text())["spec"]
        if definition["group"] == group and definition["names"]["kind"] == manifest["kind"]:
            (schema,) = [v["schema"]["openAPIV3Schema"] for v in definition["versions"] if v["name"] == served]
            problems = jsonschema.Draft202012Validator(closed(schema)).iter_errors(manifest)
            assert [(each.json_path, each.message) for each in problems] == []
            return
    pytest.fail(f"no definition of {manifest['kind']} in BIOBRACKET_CRDS")


def closed(schema: Any) -> Any:
    """The schema, refusing unknown members as `kubectl` does."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("format", None)
        made.pop("type", None)
    return made
