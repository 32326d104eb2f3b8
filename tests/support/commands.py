"""`biobracket` commands as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from services.embedded.runtime import attached, running
from shared.settings import Settings

PATIENCE_S = 600.0


class Command:
    """A `biobracket` command that runs by itself, and what it printed."""

    def __init__(self, folder: Path, settings: Mapping[str, str], *arguments: str, site: Path | None = None) -> None:
        """``settings``: by name, upper case and without the prefix; none but these are given.

        ``site``: a folder whose modules come before all others, in each process of it.
        """
        self.data = folder / "data"
        self.output = folder / "output"
        self.errors = folder / "errors"
        settings = {"DATA": str(self.data), "HTTP_PORT": "0", **settings}
        own = {k: v for k, v in os.environ.items() if not k.startswith("BIOBRACKET_")}
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from services.cli import main; main()", *arguments],
                env=own
                | {"PYTHONPATH": os.pathsep.join([*([] if site is None else [str(site)]), *sys.path])}
                | {f"BIOBRACKET_{name}": value for name, value in settings.items()},
                stdout=output,
                stderr=errors,
            )

    def wait_until_up(self, said: str) -> Settings:
        """Waits for a word of the output; the settings with the addresses."""
        deadline = time.monotonic() + PATIENCE_S
        while said not in self.output.read_text():
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.2)
        assert running(self.data) is not None
        return attached(Settings(data=self.data))

    def descendants(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def replica(self, name: str) -> int:
        """The process id of a service's only replica."""
        (pid,) = self.replicas(name)
        return pid

    def replicas(self, name: str) -> list[int]:
        """The process ids of a service's replicas."""
        title = f"ray::ServeReplica:biobracket:{name}"
        return [p.pid for p in self.descendants() if _command_line(p).startswith(title)]

    def send(self, number: int) -> list[psutil.Process]:
        """Sends a signal; the descendants that are still alive a minute after the process ended."""
        descendants = self.descendants()
        assert len(descendants) > 10
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)
        deadline = time.monotonic() + 60
        while (left := [p for p in descendants if _alive(p)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # gone since it was listed
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
