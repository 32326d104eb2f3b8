"""Build a cache file once, under an inter-process lock."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable
from pathlib import Path


def build_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Returns ``target``, a file or folder, after calling ``make`` with a path to write it to if it does not exist yet.

    Several processes may call this at once: one builds, the others wait. The target appears atomically. Once it exists
    nothing is written, so its folder may then be read-only.
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
