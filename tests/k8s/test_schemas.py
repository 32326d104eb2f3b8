"""Everything rendered, against Kubernetes' own schemas, those of the operators, and restricted PodSecurity."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.manifests import FILES, RENDERED, Manifest, manifests, pods

KUBERNETES = "1.34"
PLACES = (*RENDERED, *FILES)
# Those of no operator.
BUILT_IN = {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1"}
# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"
}  # fmt: skip


def definitions() -> Path:
    folder = os.environ.get("BIOBRACKET_CRDS")
    if not folder:
        if "CI" in os.environ:
            pytest.fail("CI needs BIOBRACKET_CRDS: a folder of the operators' custom resource definitions")
        pytest.skip("BIOBRACKET_CRDS does not name a folder of custom resource definitions")
    return Path(folder)


def schema(manifest: Manifest) -> dict[str, Any]:
    return _schema(definitions(), *manifest["apiVersion"].split("/"), manifest["kind"])


@functools.cache
def _schema(folder: Path, group: str, served: str, kind: str) -> dict[str, Any]:
    for file in folder.glob("*.yaml"):
        text = file.read_text()
        if f"kind: {kind}\n" not in text:  # of a megabyte, which takes seconds to parse
            continue
        spec = yaml.load(text, yaml.CSafeLoader)["spec"]
        if (spec["group"], spec["names"]["kind"]) == (group, kind):
            (found,) = [v["schema"]["openAPIV3Schema"] for v in spec["versions"] if v["name"] == served]
            made: dict[str, Any] = closed(found)
            return made
    pytest.fail(f"no definition of {kind} in BIOBRACKET_CRDS")


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


def problems(manifest: Manifest) -> list[str]:
    if manifest["apiVersion"] in BUILT_IN:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [error.message]
        return []
    found = jsonschema.Draft202012Validator(schema(manifest)).iter_errors(manifest)
    return [f"{each.json_path}: {each.message}" for each in found]


@pytest.mark.parametrize("place", PLACES)
def test_every_manifest_follows_the_schema_of_its_kind(place: str) -> None:
    found = {f"{each['kind']} {each['metadata']['name']}": problems(each) for each in manifests(place)}
    assert {name: said for name, said in found.items() if said} == {}
    assert found


@pytest.mark.parametrize("kind", ["RayService", "NetworkPolicy", "PodDisruptionBudget"])
def test_a_field_that_is_not_there_is_found(kind: str) -> None:
    (manifest, *_) = [each for each in manifests("overlays/cpu") if each["kind"] == kind]
    assert problems(manifest) == []
    assert problems({**manifest, "spec": {**manifest["spec"], "podSelectors": {}}})


def breaches(pod: dict[str, Any]) -> Iterator[str]:
    """What the restricted standard refuses in a pod."""
    whole = pod.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    for volume in pod.get("volumes", ()):
        if kinds := set(volume) - {"name"} - VOLUMES:
            yield f"volume {kinds}"
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        own = container.get("securityContext", {})
        said = {**whole, **own}
        if not said.get("runAsNonRoot") or said.get("runAsUser") == 0:
            yield f"{container['name']}: root"
        if said.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{container['name']}: seccompProfile"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{container['name']}: privileges"
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            yield f"{container['name']}: capabilities"
        if any("hostPort" in port for port in container.get("ports", ())):
            yield f"{container['name']}: hostPort"


def all_pods() -> list[Any]:
    found = []
    for place in PLACES:
        for manifest in manifests(place):
            found += [(f"{place} {manifest['kind']} {n}", pod) for n, pod in enumerate(pods(manifest))]
    return found


def test_every_pod_is_of_the_restricted_standard() -> None:
    found = all_pods()
    assert len(found) > 10
    assert {name: list(breaches(pod)) for name, pod in found if list(breaches(pod))} == {}


def test_a_breach_is_found() -> None:
    (_, pod), *_ = all_pods()
    assert list(breaches({**pod, "hostNetwork": True}))
    assert list(breaches({**pod, "securityContext": {}}))
    assert list(breaches({**pod, "containers": [{"name": "x"}]}))


def test_no_root_file_system_takes_writes_and_memory_is_bounded() -> None:
    for name, pod in all_pods():
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"], name
            assert "memory" in container["resources"]["limits"], name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            if container["name"] != "autoscaler":
                mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
                assert mounts & {"/tmp", "/data"}, name


def test_every_mount_has_its_volume() -> None:
    for name, pod in all_pods():
        volumes = {volume["name"] for volume in pod.get("volumes", ())} | {"data"}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes, name


def test_the_namespace_enforces_the_standard() -> None:
    for place in RENDERED[:-1]:
        (namespace,) = [each for each in manifests(place) if each["kind"] == "Namespace"]
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
