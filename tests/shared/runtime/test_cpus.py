"""CPU limits of containers, as the kernel shows them in either version of cgroups."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import faiss
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.cpus import cpus, use_threads

CORES = 16


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)))


class Cgroups:
    """Fake files of a process's cgroups."""

    def __init__(self, folder: Path) -> None:
        self.membership = folder / "cgroup"
        self.mount = folder / "fs"

    def member(self, *lines: str) -> None:
        self.membership.write_text("".join(line + "\n" for line in lines))

    def write(self, file: str, content: str) -> None:
        path = self.mount / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")

    def version_1(self, folder: str, quota: int, period: int = 100_000) -> None:
        self.write(f"{folder}/cpu.cfs_quota_us", str(quota))
        self.write(f"{folder}/cpu.cfs_period_us", str(period))

    def cpus(self) -> int:
        return cpus(self.membership, self.mount)


@pytest.fixture
def cgroups(tmp_path: Path) -> Cgroups:
    return Cgroups(tmp_path)


def test_without_cgroups_the_affinity_mask_counts(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cgroups.cpus() == CORES
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert cgroups.cpus() == 2


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", CORES),
        ("400000 100000", 4),
        ("350000 100000", 3),
        ("50000 100000", 1),
        ("20000 10000", 2),
        ("9900000 100000", CORES),
    ],
)
def test_a_quota_of_version_2(cgroups: Cgroups, limit: str, expected: int) -> None:
    cgroups.member("0::/")
    cgroups.write("cpu.max", limit)
    assert cgroups.cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [(-1, CORES), (400_000, 4), (350_000, 3), (50_000, 1)])
@pytest.mark.parametrize(
    ("controllers", "mount"), [("cpu,cpuacct", "cpu,cpuacct"), ("cpuacct,cpu", "cpu"), ("cpu", "cpu")]
)
def test_a_quota_of_version_1(cgroups: Cgroups, controllers: str, mount: str, quota: int, expected: int) -> None:
    cgroups.member("5:memory:/", f"4:{controllers}:/", "1:name=systemd:/")
    cgroups.version_1("memory", 100_000)  # of another controller: no limit of CPUs
    cgroups.version_1(mount, quota)
    assert cgroups.cpus() == expected


def test_the_tightest_of_nested_cgroups_counts(cgroups: Cgroups) -> None:
    cgroups.member("0::/pods/pod/container")
    cgroups.write("pods/pod/container/cpu.max", "max 100000")
    cgroups.write("pods/pod/cpu.max", "300000 100000")
    cgroups.write("pods/cpu.max", "800000 100000")
    cgroups.write("other/cpu.max", "100000 100000")
    assert cgroups.cpus() == 3
    cgroups.member("4:cpu,cpuacct:/pods/pod")
    cgroups.version_1("cpu,cpuacct/pods/pod", 600_000)
    cgroups.version_1("cpu,cpuacct/pods", 200_000)
    assert cgroups.cpus() == 2


@pytest.mark.parametrize("path", ["/docker/0123456789ab", "/../../system.slice/docker.service"])
def test_a_container_that_sees_paths_from_outside_finds_its_own_limit(cgroups: Cgroups, path: str) -> None:
    cgroups.member(f"0::{path}")
    cgroups.write("cpu.max", "200000 100000")
    assert cgroups.cpus() == 2
    cgroups.member(f"4:cpu,cpuacct:{path}")
    cgroups.version_1("cpu,cpuacct", 500_000)
    assert cgroups.cpus() == 5


def test_both_versions_side_by_side(cgroups: Cgroups) -> None:
    cgroups.member("4:cpu,cpuacct:/pod", "0::/pod")
    cgroups.version_1("cpu,cpuacct/pod", 700_000)
    assert cgroups.cpus() == 7
    cgroups.write("unified/pod/cpu.max", "200000 100000")
    assert cgroups.cpus() == 2


@given(st.lists(st.none() | st.integers(1_000, 5_000_000), min_size=1, max_size=4))
def test_never_more_than_any_quota_allows_and_never_none(
    tmp_path_factory: pytest.TempPathFactory, quotas: list[int | None]
) -> None:
    cgroups = Cgroups(tmp_path_factory.mktemp("cgroups"))
    cgroups.member("0::" + "/a" * len(quotas))
    for depth, quota in enumerate(quotas, 1):
        cgroups.write("a/" * depth + "cpu.max", f"{quota or 'max'} 100000")
    found = cgroups.cpus()
    limits = [quota / 100_000 for quota in quotas if quota]
    assert 1 <= found <= CORES
    assert found == 1 or all(found <= limit for limit in limits)
    assert found + 1 > min([*limits, CORES])  # and no less than they allow


def test_libraries_compute_with_as_many_threads_as_they_are_told() -> None:
    seen: list[tuple[int, int]] = []

    def work() -> None:
        use_threads(3)
        seen.append((torch.get_num_threads(), faiss.omp_get_max_threads()))

    thread = threading.Thread(target=work)
    before = torch.get_num_threads()
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert seen == [(3, 3)]
