"""Builds a file of the cache folder once, under an inter-process lock."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from pathlib import Path


def build_once(target: Path, make: Callable[[Path], None]) -> Path:
    """``target``, a file or folder, which ``make`` writes to the path it is given where it is not there yet.

    Several replicas may ask at once: one makes it, the others wait. It is there whole or not at all, and where it is
    there nothing is written, so that its folder can be read-only then.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_name(f"{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                with tempfile.TemporaryDirectory(dir=target.parent) as work:
                    made = Path(work) / target.name
                    make(made)
                    made.rename(target)
    return target
