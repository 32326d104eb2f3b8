"""The embedded runtime: broker, Valkey and the Ray application on this machine, started and stopped as one.

Heavy imports are inside the functions, so that the command line can import this module for the addresses alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

import httpx
import psutil  # type: ignore[import-untyped]
from pydantic import BaseModel, ValidationError

from services.embedded import watchdog
from services.generation.config import GenerationConfig
from shared import settings as settings_module
from shared.runtime.ray_node import on_loopback
from shared.settings import Settings

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

    from services.embedded.servers import Broker, Valkey

Report = Callable[[str, float], None]

RUNTIME_FILE = "biobracket.json"
_LOCK_FILE = "biobracket.lock"
# Logical: how many replicas Ray places, not how fast they run. All services at their smallest, Serve's own actors and
# some room must fit also where there are two cores; the operating system shares those out.
_LOGICAL_CPUS = 16
# Messages of some kilobytes pass through it and nothing stays; Ray's default is a third of the memory.
_OBJECT_STORE_BYTES = 256 * 2**20
# One replica of each: the machine is one.
_SERVICES = ("GENERATION", "INGEST", "PARSING", "PIPELINE", "QUERY", "SELECTION")
# But generation on a CPU has a process for each core, up to so many: threads of one take turns at Python's lock. The
# weights are in memory once.
_GENERATION_REPLICAS = 4
# What is sent goes to no other replica any more: enough for each to be busy, and none has the rest to itself.
_REQUESTS_PER_REPLICA = 8
# Ray gives its node half a minute, which on busy cores can be too short.
_RAY_ATTEMPTS = 3
_POLL_S = 0.25
_STOP_S = 90.0


class RuntimeFailure(Exception):
    """The embedded runtime did not start, or lost a part; the message says what to do."""


class Addresses(BaseModel):
    """Where a running embedded runtime listens; the runtime file holds it."""

    pid: int
    kafka: str
    redis: str
    http: str
    http_host: str
    http_port: int


def running(data: Path) -> Addresses | None:
    """The addresses of the runtime of a data folder; none where none runs."""
    try:
        addresses = Addresses.model_validate_json((data / RUNTIME_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    return addresses if psutil.pid_exists(addresses.pid) else None


def attached(settings: Settings) -> Settings:
    """The settings with the addresses of the runtime of ``settings.data``, where the environment does not give them."""
    addresses = running(settings.data)
    if addresses is None:
        return settings
    names = {"kafka", "redis", "http_host", "http_port"} - settings.model_fields_set
    found = addresses.model_dump(include=names)
    # Validated anew: a copy would keep the URL as plain text.
    return Settings(**{name: getattr(settings, name) for name in settings.model_fields_set} | found)


class Runtime:
    """Broker, Valkey, Ray and the application. A context manager; start it in the main thread.

    An address that the environment gives is used as it is, and no server is started in its place. Nothing outlives
    the process: what :meth:`stop` cannot do any more, a watchdog does.
    """

    def __init__(self, settings: Settings, report: Report = lambda what, done: None) -> None:
        """``report`` is told what is going on and which share of the start is done."""
        self._given = settings
        self._report = report
        self._cleanup = contextlib.ExitStack()
        self._servers: list[Broker | Valkey] = []
        self.settings = settings
        """The settings with the addresses in force; after :meth:`start`."""

    @property
    def http(self) -> str:
        """The base URL of the HTTP interface."""
        return f"http://{self.settings.http_host}:{self.settings.http_port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when documents can be sent.

        :class:`RuntimeFailure`, with everything stopped again, where that cannot be.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops everything, documents in flight first, and returns when no process is left. Can be called twice."""
        self._cleanup.close()

    def check(self) -> None:
        """:class:`RuntimeFailure` where a server died."""
        for server in self._servers:
            if not server.alive:
                raise RuntimeFailure(f"{server.name}: ended by itself; see {server.log}")

    def _start(self) -> None:
        data = self._given.data
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cleanup.enter_context(_locked(data))
        port = _http_port(self._given)
        self._check_model()
        scratch = self._guard()
        self._report("starting broker and store", 0.1)
        addresses = self._start_servers(data)
        self.settings = Settings(
            **{name: getattr(self._given, name) for name in self._given.model_fields_set}
            | addresses
            | {"http_port": port}
        )
        self._set_environment()
        from shared.backends.streams import ensure_topics
        from shared.errors import StreamError

        try:
            ensure_topics(self.settings)
        except StreamError as error:
            raise RuntimeFailure(str(error)) from None
        self._report("starting Ray", 0.2)
        self._start_ray(scratch)
        self._start_application()
        self._write_file(data)
        self._report("ready", 1.0)

    def _check_model(self) -> None:
        """What would fail in a replica with a long traceback fails here with one line; it also fills the cache."""
        from shared.model.base_model import BaseModelError, base_folder
        from shared.model.folders import adapter_folder

        self._report("preparing the model (the first time takes a minute)", 0.0)
        try:
            adapter_folder(self._given)
            base_folder(self._given)
        except (FileNotFoundError, BaseModelError) as error:
            raise RuntimeFailure(str(error)) from None

    def _guard(self) -> Path:
        """Starts the watchdog; a folder for Ray's files, which the watchdog removes."""
        # Not in the data folder: Ray's sockets lie there, and a socket's path has at most 107 bytes.
        scratch = Path(tempfile.mkdtemp(prefix="biobracket-"))
        process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, watchdog.__file__, str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self._cleanup.callback(process.communicate)  # closes its standard input and waits
        return scratch

    def _start_servers(self, data: Path) -> dict[str, str]:
        from services.embedded.servers import Broker, ServerError, Valkey

        addresses = {}
        try:
            for name, server in (("kafka", Broker(data / "broker")), ("redis", Valkey(data / "valkey"))):
                if name in self._given.model_fields_set:
                    continue
                self._cleanup.callback(server.stop)
                server.start()
                self._servers.append(server)
                addresses[name] = server.url
        except ServerError as error:
            raise RuntimeFailure(str(error)) from None
        return addresses

    def _set_environment(self) -> None:
        """Replicas read their settings from the environment, which they inherit through Ray."""
        own = {
            "BIOBRACKET_KAFKA": self.settings.kafka,
            "BIOBRACKET_REDIS": self.settings.redis.get_secret_value(),
            "BIOBRACKET_HTTP_PORT": str(self.settings.http_port),
            "BIOBRACKET_DATA": str(self.settings.data.resolve()),
            # A secret of this run keeps other users of the machine out of Ray, and nothing in the home folder.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray would put its workers at the lowest priority, where any other program starves the model.
            "RAY_worker_niceness": "0",
            # A process of Ray takes seconds to start, on busy cores many: slow is not dead.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
            # Serve's controller looks ten times a second whether all is well, which takes 2 % of two cores.
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
            # Ten times a second in every replica is most of what an idle one does.
            "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        }
        defaults = {f"BIOBRACKET_{name}_MAX_REPLICAS": "1" for name in _SERVICES} | _replicas_of_generation()
        # Services but generation, which sets its own number, have work for one thread.
        defaults |= {"OMP_NUM_THREADS": "1"}
        own |= {name: value for name, value in defaults.items() if name not in os.environ}
        self._cleanup.enter_context(_environment(own))
        settings_module.settings.cache_clear()
        self._cleanup.callback(settings_module.settings.cache_clear)

    def _start_ray(self, scratch: Path) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        self._cleanup.callback(ray.shutdown)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for attempt in range(1, _RAY_ATTEMPTS + 1):
            try:
                ray.init(
                    **on_loopback(),
                    num_cpus=_LOGICAL_CPUS,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    _temp_dir=str(scratch),
                )
                break
            except Exception as error:  # Ray has no class for it: its node took too long, mostly
                if attempt == _RAY_ATTEMPTS:
                    raise RuntimeFailure(
                        f"ray: did not start in {attempt} attempts ({type(error).__name__}); other programs may leave "
                        "it no processor or memory: stop some, and start again"
                    ) from None
                ray.shutdown()
                watchdog.sweep(scratch, os.getpid())
        # Ray put its own in place, and the one for SIGTERM aborts.
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def _start_application(self) -> None:
        self._report("starting Ray Serve", 0.4)
        from ray import serve
        from ray.serve.schema import LoggingConfig

        from services import app

        # Serve sets the level of its logger when it is imported.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # The access log would hold identifiers and mentions, which stand in addresses.
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        http = {"host": self.settings.http_host, "port": self.settings.http_port}
        with contextlib.suppress(TimeoutError):  # of a wait that goes on below
            serve.start(http_options=http, logging_config=quiet)
        serve.run_many(
            [serve.RunTarget(target=app.app(), name=app.NAME, route_prefix="/", logging_config=quiet)],
            wait_for_applications_running=False,
        )
        while True:
            application = serve.status().applications.get(app.NAME)
            states = [d.status for d in application.deployments.values()] if application else []
            healthy = sum(state == "HEALTHY" for state in states)
            self._report(f"starting services, {healthy} of {len(_SERVICES)} run", 0.5 + 0.4 * healthy / len(_SERVICES))
            if application is not None and application.status == "RUNNING":
                break
            if application is not None and application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise RuntimeFailure(_reason(application))
            self.check()
            time.sleep(_POLL_S)
        # From here on there can be documents in flight, which this lets finish.
        self._cleanup.callback(_bounded, serve.shutdown, _STOP_S)
        while not self._ready():
            self.check()
            time.sleep(_POLL_S)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.http}/readyz", timeout=30.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _write_file(self, data: Path) -> None:
        addresses = Addresses(
            pid=os.getpid(),
            kafka=self.settings.kafka,
            redis=self.settings.redis.get_secret_value(),
            http=self.http,
            http_host=self.settings.http_host,
            http_port=self.settings.http_port,
        )
        file = data / RUNTIME_FILE
        file.unlink(missing_ok=True)
        self._cleanup.callback(file.unlink, missing_ok=True)
        # It holds Valkey's password: never readable to others, not even while it is written.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(addresses.model_dump_json(indent=2))


def _replicas_of_generation() -> dict[str, str]:
    """How many on a CPU, and their threads; nothing where the environment says something of it."""
    config = GenerationConfig()
    given = {"min_replicas", "max_replicas", "threads"} & config.model_fields_set
    if given or config.num_gpus or config.engine == "vllm":
        return {}
    cores = len(os.sched_getaffinity(0))
    number = min(cores, _GENERATION_REPLICAS)
    values = {
        "GENERATION_MIN_REPLICAS": number,
        "GENERATION_MAX_REPLICAS": number,
        "GENERATION_THREADS": -(-cores // number),
        "PIPELINE_REQUESTS_IN_FLIGHT": number * _REQUESTS_PER_REPLICA,
    }
    return {f"BIOBRACKET_{name}": str(value) for name, value in values.items()}


def _reason(application: ApplicationStatusOverview) -> str:
    """The last line of what Serve says of a failed deployment: the class and message of the error."""
    messages = [d.message for d in application.deployments.values() if d.status != "HEALTHY" and d.message]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return f"services: {lines[-1] if lines else 'did not start'}"


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[IO[bytes]]:
    with (data / _LOCK_FILE).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RuntimeFailure(
                f"data: {data} is in use by another `biobracket up` or `demo`; stop it, or choose another folder with "
                "--data or BIOBRACKET_DATA"
            ) from None
        yield lock


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _http_port(settings: Settings) -> int:
    """The port to listen on: the given one, or where none was given and the default is taken, a free one."""
    given = "http_port" in settings.model_fields_set
    for port in (settings.http_port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.http_host, port))
            except OSError as error:
                if given or port == 0:
                    raise RuntimeFailure(
                        f"http_port: cannot listen on {settings.http_host}:{port} ({error.strerror}); choose another "
                        "with --port or BIOBRACKET_HTTP_PORT, where 0 is any free one"
                    ) from None
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("unreachable")


def _bounded(call: Callable[[], object], seconds: float) -> None:
    """Calls, and gives up waiting after some time: a broken cluster must not keep the stop from going on."""

    def quiet() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=quiet, daemon=True)
    thread.start()
    thread.join(seconds)
