from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from services.embedded import watchdog

# Starts the watchdog of a folder and a child that has a file of the folder open, prints their ids, and waits.
PARENT = """
import subprocess, sys, time
watchdog, folder = sys.argv[1:]
guard = subprocess.Popen([sys.executable, watchdog, folder], stdin=subprocess.PIPE, start_new_session=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         stdout=open(folder + "/log", "w"), start_new_session=True)
own = open(folder + "/own", "w")
print(guard.pid, child.pid, flush=True)
if sys.stdin.readline():  # stop in order
    guard.stdin.close()
    guard.wait()
    print("stopped", flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def started(folder: Path) -> tuple[subprocess.Popen[str], int, int]:
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, watchdog.__file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    guard, child = map(int, parent.stdout.readline().split())
    return parent, guard, child


def test_children_of_a_killed_parent_are_ended(tmp_path: Path) -> None:
    parent, guard, child = started(tmp_path / "scratch")
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert gone(child)
    assert gone(guard)
    assert not (tmp_path / "scratch").exists()
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_parent_that_stops_in_order_is_spared(tmp_path: Path) -> None:
    parent, guard, child = started(tmp_path / "scratch")
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write("stop\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "stopped\n"
    assert parent.poll() is None
    assert gone(child)
    assert gone(guard)
    parent.kill()
    parent.communicate()
