"""The manifests against the code, and against a cluster's schemas where BIOBRACKET_CRDS names a folder of them."""

from __future__ import annotations

import importlib
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from services.cli import _configs
from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = [
    pytest.param(manifest, id=f"{file.name}-{manifest['kind']}-{manifest['metadata']['name']}")
    for file in sorted((ROOT / "k8s").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text())
]
CORE = {"ConfigMap"}  # kinds of Kubernetes itself, which no custom resource definition describes


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [m.values[0] for m in MANIFESTS if m.values[0]["kind"] == kind]
    return found


def serve_config() -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"]))


def pods() -> list[dict[str, Any]]:
    cluster = manifest("RayService")["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_serve_runs_the_application() -> None:
    (application,) = serve_config().applications
    module, name = application.import_path.split(":")
    assert isinstance(getattr(importlib.import_module(module), name)(), Application)


def test_every_setting_of_the_config_map_exists_and_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    given = manifest("ConfigMap")["data"]
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    known = set()
    for config in _configs():  # reads the environment: an invalid value raises here
        prefix = config.model_config.get("env_prefix", "")
        known |= {f"{prefix}{field}".upper() for field in type(config).model_fields}
    assert set(given) <= known


def test_every_pod_gets_the_settings_and_is_confined() -> None:
    name = manifest("ConfigMap")["metadata"]["name"]
    for pod in pods():
        (container,) = pod["containers"]
        assert {"configMapRef": {"name": name}} in container["envFrom"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]


def test_ray_is_the_version_that_is_installed() -> None:
    assert manifest("RayService")["spec"]["rayClusterConfig"]["rayVersion"] == version("ray")


def test_topics_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCUMENTS", "ENTITIES", "DEAD_LETTERS"):
        monkeypatch.delenv(f"BIOBRACKET_TOPIC_{name}", raising=False)
    settings = Settings()
    topics = {m.values[0]["metadata"]["name"] for m in MANIFESTS if m.values[0]["kind"] == "KafkaTopic"}
    assert topics == {settings.topic_documents, settings.topic_entities, settings.topic_dead_letters}


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
            jsonschema.validate(manifest, closed(schema))
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
