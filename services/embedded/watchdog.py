"""Ends the Ray processes of an embedded run whose parent is gone.

``python watchdog.py FOLDER`` reads standard input, which nobody writes to, until it closes: that happens when the
parent ends, however it does. Then every process that has a file of ``FOLDER``, Ray's own, open is killed, and the
folder removed. Ray's agents would notice a lost parent only after a minute. (They overwrite their environment and
arguments, so that an open log is the only mark they keep.) Broker and store see to it themselves.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_SWEEP_S = 30.0


def users(folder: Path, but: int) -> list[psutil.Process]:
    """The processes of this user, ``but`` one, that have a file below the folder open."""
    below = f"{folder.resolve()}/"
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != but and any(file.path.startswith(below) for file in process.open_files()):
                found.append(process)
        except psutil.Error:  # another user's, or gone
            continue
    return found


def sweep(folder: Path, parent: int) -> None:
    """Kills the users of the folder, and those that they started meanwhile, but the parent."""
    deadline = time.monotonic() + _SWEEP_S
    while (processes := users(folder, parent)) and time.monotonic() < deadline:
        for process in processes:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(processes, timeout=1.0)


if __name__ == "__main__":
    parent = os.getppid()  # it has Ray's files open as well, and may be stopping in order
    sys.stdin.buffer.read()
    sweep(Path(sys.argv[1]), parent)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
