"""The job that trains, against the code."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from services.cli import cli
from tests.k8s.test_settings import known_settings
from tests.support.manifests import cluster, one
from training.config import CONFIGS, GeneratorConfig

PLACE, NAME = "jobs/training.yaml", "biobracket-training"


def ray() -> dict[str, Any]:
    return cluster(one(PLACE, "RayJob", NAME))


def ray_pods() -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (ray()["headGroupSpec"], *ray()["workerGroupSpecs"])]


def test_every_setting_exists_and_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    given = one(PLACE, "ConfigMap", NAME)["data"]
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    assert set(given) - {"HF_HOME"} <= known_settings()
    for pod in ray_pods():
        assert {"configMapRef": {"name": NAME}} in pod["containers"][0]["envFrom"]


def test_ray_is_the_version_that_is_installed() -> None:
    assert ray()["rayVersion"] == version("ray")


def training_command() -> dict[str, Any]:
    """Arguments of ``biobracket train generator`` as the command itself reads them: what it does not know raises."""
    program, *words = shlex.split(one(PLACE, "RayJob", NAME)["spec"]["entrypoint"])
    assert (program, words[:2]) == ("biobracket", ["train", "generator"])
    command: Any = typer.main.get_command(cli)
    for word in words[:2]:
        command = command.commands[word]
    return command.make_context("generator", words[2:]).params


def training_config() -> GeneratorConfig:
    given = training_command()
    return GeneratorConfig.load(CONFIGS / f"{given['config_file']}.yaml", given["overrides"])


def test_each_training_worker_has_a_pod_with_a_gpu() -> None:
    config = training_config()
    (group,) = ray()["workerGroupSpecs"]
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
    assert f"BIOBRACKET_BASE_MODEL={one(PLACE, 'ConfigMap', NAME)['data']['BIOBRACKET_BASE_MODEL']}\n" in text


def test_what_training_reads_and_leaves_is_in_a_volume_of_all_pods() -> None:
    claim = one(PLACE, "PersistentVolumeClaim", NAME)
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    data = one(PLACE, "ConfigMap", NAME)["data"]
    folders = [training_command()["folder"], Path(data["BIOBRACKET_CORPORA"]), Path(data["HF_HOME"])]
    assert training_config().storage is None  # checkpoints are below the first folder
    for pod in ray_pods():
        (container,) = pod["containers"]
        (mount,) = [each for each in container["volumeMounts"] if each["name"] != "tmp"]
        (volume,) = [each for each in pod["volumes"] if each["name"] != "tmp"]
        assert (mount["name"], volume["persistentVolumeClaim"]["claimName"]) == (volume["name"], NAME)
        assert all(folder.is_relative_to(mount["mountPath"]) for folder in folders)


def test_a_finished_training_job_gives_its_gpus_back() -> None:
    assert one(PLACE, "RayJob", NAME)["spec"]["shutdownAfterJobFinishes"]
