"""The hardware a benchmark ran on, and the command that started it."""

from __future__ import annotations

import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from shared.runtime.cpus import cpus


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, and the accelerator if there is one."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def make_command(target: str) -> str:
    """The `make` command that started this process."""
    arguments = shlex.join(sys.argv[1:])
    return shlex.join(["make", target, *([f"ARGS={arguments}"] if arguments else [])])
