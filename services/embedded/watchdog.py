"""Kill the Ray processes of an embedded run once its parent is gone.

``python watchdog.py FOLDER`` reads standard input, which nobody writes to, until it closes; that happens when the
parent exits, for whatever reason. It then kills every process with an open file in ``FOLDER``, which is Ray's, and
removes the folder. Ray's agents would notice a dead parent only after a minute. (They overwrite their environment and
arguments, so an open log file is the only way to recognise them.) Broker and store need no watchdog.
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
    """This user's processes, except ``but``, that have a file below the folder open."""
    below = f"{folder.resolve()}/"
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != but and any(file.path.startswith(below) for file in process.open_files()):
                found.append(process)
        except psutil.Error:  # another user's, or already gone
            continue
    return found


def sweep(folder: Path, parent: int) -> None:
    """Kill the processes that use the folder, and any that they start meanwhile, except ``parent``."""
    deadline = time.monotonic() + _SWEEP_S
    while (processes := users(folder, parent)) and time.monotonic() < deadline:
        for process in processes:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(processes, timeout=1.0)


if __name__ == "__main__":
    parent = os.getppid()  # has Ray's files open as well, and may be shutting down in order
    sys.stdin.buffer.read()
    sweep(Path(sys.argv[1]), parent)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
