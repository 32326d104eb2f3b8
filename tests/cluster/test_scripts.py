"""The scripts of the test cluster, where it cannot run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster.kubernetes import HERE, Cluster, Missing
from tests.support.manifests import ROOT

# What `up` calls before it looks for what it needs.
TOOLS = ("bash", "dirname", "seq", "uname", "cat")


def run(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        if not (tools / name).exists():
            (tools / name).symlink_to(found)
    given = {"PATH": str(tools), "CLUSTER_DIR": str(folder / "cluster"), **env}
    return subprocess.run([str(HERE / script)], env=given, capture_output=True, text=True)


def test_what_is_missing_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    done = run("up", tmp_path)
    assert done.returncode == 1
    assert "up: containerd is missing; on Debian: apt-get install containerd" in done.stderr
    assert not (tmp_path / "cluster").exists()


def test_down_where_nothing_runs_is_no_error(tmp_path: Path) -> None:
    done = run("down", tmp_path)
    assert (done.returncode, done.stderr) == (0, f"down: nothing runs from {tmp_path / 'cluster'}\n")


@pytest.mark.parametrize("script", ["build", "up", "down", "image"])
def test_scripts_are_bash_and_can_be_run(script: str) -> None:
    assert os.access(HERE / script, os.X_OK)
    subprocess.run(["bash", "-n", str(HERE / script)], check=True)


def test_without_a_cluster_the_tests_say_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr("tests.cluster.kubernetes.FOLDER", tmp_path)
    with pytest.raises(Missing, match="make cluster"):
        Cluster("biobracket")


def test_its_packages_are_named_in_the_documents() -> None:
    text = (HERE / "up").read_text()
    wanted = text[text.index("apt-get install ") :].split('"')[0].strip()
    assert wanted in (ROOT / "docs" / "kubernetes.md").read_text()
