from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.cli import cli
from services.cli.plan import Load, Plan, patch, plan, settings
from tests.support.manifests import ROOT
from tests.support.serving import fits


def made(documents: int = 100_000, per_replica: float = 5.0, *, node_cpus: int = 16, gpus: int = 0) -> Plan:
    load = Load(documents, segments_per_document=8, cached=0.0, peak=2.0)
    return plan(load, per_replica=per_replica, utilisation=0.7, replica_cpus=4, node_cpus=node_cpus, gpus=gpus)


def test_segments_at_the_peak() -> None:
    assert Load(86_400, 10, 0.0, 1.0).segments_per_second == 10
    assert Load(86_400, 10, 0.5, 3.0).segments_per_second == 15


def test_a_known_load() -> None:
    """18.5 segments a second, of which a replica is given 3.5."""
    found = made()
    assert (found.generation, found.selection, found.ingest) == (6, 2, 3)
    assert found.pods == {"light": 2, "generation": 6, "selection": 2}


def test_a_trickle_still_survives_the_loss_of_a_pod() -> None:
    assert min(made(documents=1).pods.values()) == 2


@given(st.integers(1, 10**7), st.floats(0.5, 1000), st.sampled_from([4, 8, 16, 64]))
def test_more_never_needs_less_and_everything_fits(documents: int, per_replica: float, node_cpus: int) -> None:
    found, more = (made(count, per_replica, node_cpus=node_cpus) for count in (documents, 2 * documents))
    for name, count in found.pods.items():
        assert count <= more.pods[name]
    assert found.nodes <= more.nodes
    peak = Load(documents, 8, 0.0, 2.0).segments_per_second
    assert found.generation * per_replica * 0.7 >= peak * (1 - 1e-9)
    light = [0.1] * (found.ingest + found.pipeline + found.parsing) + [0.25] * found.query
    if len(light) < 1000:  # fits() is quadratic
        assert fits(light, [2.0] * found.pods["light"])
    if found.generation < 300:
        sizes = [4.0] * found.generation + [2.0] * found.pods["light"] + [1.0] * (found.selection + 1)
        assert fits(sizes, [float(node_cpus)] * found.nodes)
    assert found.ingest <= found.partitions


def test_each_replica_has_a_gpu() -> None:
    found = made(per_replica=0.5, gpus=2)
    assert found.nodes >= found.generation / 2
    assert settings(found, 4, gpus=2)["BIOBRACKET_GENERATION_NUM_GPUS"] == "1"
    assert "BIOBRACKET_GENERATION_NUM_GPUS" not in settings(found, 4, gpus=0)


def test_a_replica_larger_than_a_node_is_refused() -> None:
    with pytest.raises(ValueError, match="--node-cpus"):
        made(node_cpus=2)


def test_it_writes_an_overlay(tmp_path: Path) -> None:
    command = ["plan", "--documents-per-day", "100000", "--segments-per-second", "5", "--overlay", str(tmp_path)]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "replicas of generation: 6" in result.output
    lines = (tmp_path / "plan.env").read_text().splitlines()
    assert dict(line.split("=", 1) for line in lines[1:]) == settings(made(), 4, gpus=0)
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text()) == patch(made())


def test_it_says_where_it_cannot_write(tmp_path: Path) -> None:
    command = ["plan", "--documents-per-day", "1", "--segments-per-second", "5", "--overlay", str(tmp_path / "none")]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code != 0
    assert "overlay" in result.output


def test_groups_stand_in_the_order_of_the_manifest() -> None:
    service = yaml.safe_load((ROOT / "k8s" / "base" / "rayservice.yaml").read_text())
    names = [group["groupName"] for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]]
    assert names == list(made().pods)


def test_the_document_has_what_the_command_says() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,.]+) \| (.+) \|$", text, re.MULTILINE)
    assert rows
    for documents, rate, counts in rows:
        found = made(int(documents.replace(",", "")), 6.5)
        said = (found.generation, found.selection, found.pods["light"], found.ingest, found.nodes)
        assert counts.replace(",", "").split(" | ") == list(map(str, said))
        assert rate == f"{Load(int(documents.replace(',', '')), 8, 0.0, 2.0).segments_per_second:,.1f}"


@pytest.mark.parametrize(("name", "gpus"), [("cpu", 0), ("gpu", 1)])
def test_the_overlays_are_what_the_command_writes(name: str, gpus: int) -> None:
    """For the load of the document's example."""
    overlay = ROOT / "k8s" / "overlays" / name
    lines = (overlay / "plan.env").read_text().splitlines()
    found = made(100_000, 6.5, gpus=gpus)
    assert dict(line.split("=", 1) for line in lines[1:]) == settings(found, 4, gpus)
    assert yaml.safe_load((overlay / "plan.yaml").read_text()) == patch(found)
