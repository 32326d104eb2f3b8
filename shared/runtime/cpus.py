"""How many CPUs this process may use: a container's limit is seldom the number of the machine's cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

_NICER = 10
_PROC = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
# Where cgroups of version 2 are mounted: alone, or beside those of version 1.
_UNIFIED = (".", "unified")


def cpus(membership: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """CPUs that this process may keep busy: the least of its affinity mask and the quotas of its cgroups, at least one.

    A fraction of a CPU counts for nothing: a thread more than the quota pays for stops all of them for a while.
    ``membership``: the file that names the process's cgroups; ``cgroups``: where they are mounted.
    """
    allowed = [float(len(os.sched_getaffinity(0))), *_quotas(membership, cgroups)]
    return max(1, int(min(allowed)))


def use_threads(number: int) -> None:
    """Let the libraries that this process has loaded compute with so many threads when this thread calls them."""
    for library, function in (("torch", "set_num_threads"), ("faiss", "omp_set_num_threads")):
        if (module := sys.modules.get(library)) is not None:
            getattr(module, function)(number)


def give_way() -> None:
    """Compute when nobody else wants a CPU, in this thread and in those that it starts from now on.

    For models: what answers requests, beats hearts and reads streams on the same cores then does so at once, also where
    a burst of requests is to be refused.
    """
    os.nice(_NICER)


def _quotas(membership: Path, cgroups: Path) -> Iterator[float]:
    """The limits, in CPUs, of the cgroups that a process is in and of those around them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no cgroups here
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for mount in _UNIFIED:
                for folder in _upwards(cgroups / mount, path):
                    yield from _version_2(folder)
        elif "cpu" in controllers.split(","):
            for mount in dict.fromkeys((controllers, "cpu", "cpu,cpuacct")):
                for folder in _upwards(cgroups / mount, path):
                    yield from _version_1(folder)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a cgroup and those above it, up to the mount.

    In a container the path may be that outside, of which the mount shows the end only: the folders that do not exist
    hold no limit, and the mount itself is the container's.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _version_2(folder: Path) -> Iterator[float]:
    match _words(folder / "cpu.max"):
        case [quota, period] if quota != "max":
            yield int(quota) / int(period)


def _version_1(folder: Path) -> Iterator[float]:
    match _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us"):
        case [[quota], [period]] if int(quota) > 0:  # -1: no limit
            yield int(quota) / int(period)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
