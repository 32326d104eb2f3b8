"""The product in a Ray cluster, as `ray start` and `serve run` start it, joined to servers of the test's."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from shared.settings import Settings
from tests.support.commands import PATIENCE_S
from tests.support.marker import free_port


class Running:
    """A deployment, and where it leaves traces: folders by name."""

    def __init__(
        self,
        settings: Settings,
        folders: Mapping[str, Path],
        descendants: Callable[[], list[psutil.Process]],
        token: str = "",
        dashboard: int = 0,
    ) -> None:
        """``token``: of Ray; ``dashboard``: the port of its dashboard."""
        self.settings = settings
        self.folders = folders
        self.token = token
        self.dashboard = dashboard
        self.descendants = descendants
        self.url = f"http://{settings.http_host}:{settings.http_port}"

    def replica(self, service: str) -> int:
        """A process of a service."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for process in self.descendants():
                with suppress(psutil.Error):
                    if process.cmdline()[0].startswith(f"ray::ServeReplica:biobracket:{service}"):
                        return process.pid
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=30, trust_env=False).status_code == 200
        return False


@contextmanager
def served(
    folder: Path, given: Mapping[str, str], data: Path, settings: Callable[[int], Settings], *, dashboard: int = 0
) -> Iterator[Running]:
    """``ray start`` and ``serve run``.

    ``given``: settings by name, upper case and without the prefix; ``data``: the folder of the store; ``settings``: the
    test's own, from the port of HTTP; ``dashboard``: the port of Ray's, 0 for none.
    """
    ray = Path(tempfile.mkdtemp(prefix="bbr-", dir="/tmp"))  # a socket's path is limited to 107 bytes
    port, http, token = free_port(), free_port(), secrets.token_hex(32)
    names = {"AUDIT": str(folder / "audit"), "HTTP_PORT": str(http), "INGEST_INSTANCE": "", "INGEST_SESSION_S": "6"}
    names |= {"INGEST_MAX_REPLICAS": "1", **given}
    own = {name: value for name, value in os.environ.items() if not name.startswith("BIOBRACKET_")}
    own |= {f"BIOBRACKET_{name}": value for name, value in names.items()}
    own |= {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    config = folder / "serve.yaml"
    config.write_text(
        f"http_options: {{host: 127.0.0.1, port: {http}}}\n"
        "applications:\n- {name: biobracket, route_prefix: /, import_path: 'services.app:app'}\n"
    )
    head = ["ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    head += [f"--temp-dir={ray}", "--num-cpus=24", "--object-store-memory=200000000"]
    head += [f"--include-dashboard={str(dashboard > 0).lower()}", f"--dashboard-port={dashboard or 8265}"]
    serve = ["ray.serve.scripts", "run", f"--address=127.0.0.1:{port}", str(config)]
    said = folder / "output"
    with said.open("wb") as output:
        started: list[subprocess.Popen[bytes]] = []

        def start(module: str, *arguments: str) -> None:
            call = f"from {module} import cli; cli({list(arguments)!r})"
            started.append(subprocess.Popen([sys.executable, "-c", call], env=own, stdout=output, stderr=output))

        try:
            start(*head)
            deadline = time.monotonic() + PATIENCE_S
            while not (ray / "session_latest" / "sockets" / "raylet").exists():
                assert started[0].poll() is None, said.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
            start(*serve)
            folders = {"data": data, "audit": folder / "audit", "ray": ray, "output": folder}
            running = Running(settings(http), folders, lambda: _below(started), token, dashboard)
            while not running.ready():
                assert [each.poll() for each in started] == [None, None], said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(1)
            yield running
        finally:
            for each in _below(started):  # nothing of it is needed any more
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            for process in started:
                process.wait(60)
            shutil.rmtree(ray, ignore_errors=True)


def _below(processes: Iterable[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    alive = (psutil.Process(each.pid) for each in processes if each.poll() is None)
    return [p for each in alive for p in [each, *each.children(recursive=True)]]
