"""The embedded runtime: broker, Valkey and the Ray application on this machine, started and stopped together.

Heavy imports are inside functions, so that commands that only need the addresses start fast.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import signal
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

from services.embedded import http_server, watchdog
from services.generation.config import GenerationConfig
from shared import settings as settings_module
from shared.runtime.cpus import cpus
from shared.runtime.ray_node import on_loopback
from shared.settings import Settings

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

    from services.embedded.servers import Broker, Valkey

OnProgress = Callable[[str, float], None]
"""Called with what is going on and the fraction of the start that is done, from 0 to 1."""

RUNTIME_FILE = "biobracket.json"
_LOCK_FILE = "biobracket.lock"
# Logical CPUs decide how many replicas Ray places, not how fast they run. All services at their smallest, and Serve's
# own actors, must fit with room to spare even on two cores, which the operating system shares out. Generation and
# selection each take every core besides.
_LOGICAL_CPUS = 16
# Only short-lived messages of a few kilobytes pass through it; Ray's default is a third of the memory.
_OBJECT_STORE_BYTES = 256 * 2**20
# At most one replica of each on a single machine.
_SERVICES = ("GENERATION", "INGEST", "PARSING", "PIPELINE", "QUERY", "SELECTION")
# Except that generation on a CPU gets a process per core, up to this many, since the threads of one process contend for
# the GIL. The processes share the weights in memory.
_GENERATION_REPLICAS = 4
# A request cannot move to another replica once sent: enough to keep each busy, few enough to keep them balanced.
_REQUESTS_PER_REPLICA = 8
# Ray gives its node half a minute to start, which can be too short on busy cores.
_RAY_ATTEMPTS = 3
_POLL_S = 0.25
_STOP_S = 90.0


class RuntimeFailure(Exception):
    """The embedded runtime did not start, or one of its servers died; the message says what to do."""


class Addresses(BaseModel):
    """Where a running embedded runtime listens, as stored in the runtime file."""

    pid: int
    kafka: str
    redis: str
    http_url: str
    http_host: str
    http_port: int


def running(data: Path) -> Addresses | None:
    """The addresses of the runtime that uses a data folder; None if none is running."""
    try:
        addresses = Addresses.model_validate_json((data / RUNTIME_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    return addresses if psutil.pid_exists(addresses.pid) else None


def attached(settings: Settings) -> Settings:
    """The settings, with the addresses of the runtime in ``settings.data`` for those that are not set explicitly."""
    addresses = running(settings.data)
    if addresses is None:
        return settings
    names = {"kafka", "redis", "http_url", "http_host", "http_port"} - settings.model_fields_set
    if {"http_host", "http_port"} & settings.model_fields_set:
        names.discard("http_url")
    found = addresses.model_dump(include=names)
    # A new instance, since a copy is not validated and would keep the URL as plain text.
    return Settings(**{name: getattr(settings, name) for name in settings.model_fields_set} | found)


class Runtime:
    """Broker, Valkey, Ray and the application. A context manager; start it in the main thread.

    If the settings give the address of a server, that one is used instead of an embedded one. Nothing outlives the
    process: a watchdog cleans up if :meth:`stop` did not run.
    """

    def __init__(self, settings: Settings, on_progress: OnProgress = lambda stage, done: None) -> None:
        self._given = settings
        self._on_progress = on_progress
        self._cleanup = contextlib.ExitStack()
        self._servers: list[Broker | Valkey] = []
        self.settings = settings
        """The settings with the actual addresses, after :meth:`start`."""

    @property
    def http(self) -> str:
        """The base URL of the HTTP interface, for programs on this machine."""
        return http_server.url(self.settings)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything; returns once documents can be sent.

        On failure, stops everything again and raises :class:`RuntimeFailure`.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Finish documents in flight, stop everything, and return once no process is left. Idempotent."""
        self._cleanup.close()

    def check(self) -> None:
        """Raise :class:`RuntimeFailure` if a server died."""
        for server in self._servers:
            if not server.alive:
                raise RuntimeFailure(f"{server.name}: exited unexpectedly; see {server.log}")

    def _start(self) -> None:
        data = self._given.data
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._cleanup.enter_context(_locked(data))
        try:
            http_server.check(self._given)
            port = http_server.port(self._given)
        except http_server.HttpServerError as error:
            raise RuntimeFailure(str(error)) from None
        self._check_model()
        scratch = self._guard()
        self._on_progress("starting broker and store", 0.1)
        addresses = self._start_servers(data)
        self.settings = Settings(
            **{name: getattr(self._given, name) for name in self._given.model_fields_set}
            | addresses
            | {"http_port": port}
        )
        self._set_environment()
        from shared.backends.streams.topics import ensure_topics
        from shared.errors import StreamError

        try:
            ensure_topics(self.settings)
        except StreamError as error:
            raise RuntimeFailure(str(error)) from None
        self._on_progress("starting Ray", 0.2)
        self._start_ray(scratch)
        self._start_application()
        self._write_file(data)
        self._on_progress("ready", 1.0)

    def _check_model(self) -> None:
        """Fail with one line instead of with a long traceback in a replica; also fills the cache."""
        from shared.model.base_model import BaseModelError, base_folder
        from shared.model.folders import adapter_folder

        self._on_progress("preparing the model (takes a minute the first time)", 0.0)
        try:
            adapter_folder(self._given)
            base_folder(self._given)
        except (FileNotFoundError, BaseModelError) as error:
            raise RuntimeFailure(str(error)) from None

    def _guard(self) -> Path:
        """Start the watchdog; returns a folder for Ray's files, which the watchdog removes."""
        # Not in the data folder: it holds Ray's sockets, and a socket's path is limited to 107 bytes.
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
        """Set what replicas read from the environment, which they inherit through Ray."""
        own = {
            "BIOBRACKET_KAFKA": self.settings.kafka,
            "BIOBRACKET_REDIS": self.settings.redis.get_secret_value(),
            "BIOBRACKET_HTTP_PORT": str(self.settings.http_port),
            "BIOBRACKET_DATA": str(self.settings.data.resolve()),
            # A token for this run keeps other users of the machine out of Ray without a file in the home folder.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray would run its workers at the lowest priority, where any other program starves the model.
            "RAY_worker_niceness": "0",
            # A Ray process takes seconds to start, and many on busy cores: slow is not dead.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
            # By default Serve's controller loops ten times per second, which takes 2 % of two cores.
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
            # The default, ten times per second, is most of what an idle replica does.
            "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
        }
        defaults = {f"BIOBRACKET_{name}_MAX_REPLICAS": "1" for name in _SERVICES} | _replicas_of_generation()
        own |= http_server.environment(self.settings)
        if "kafka" not in self._given.model_fields_set:
            # Tansu keeps a joining replica waiting for half its session, and knows no static members.
            defaults["BIOBRACKET_INGEST_SESSION_S"] = "6"
            own["BIOBRACKET_INGEST_INSTANCE"] = ""
        # Selection has little to do, and then at once; but for it and generation every service is single-threaded.
        defaults |= {"BIOBRACKET_SELECTION_THREADS": str(cpus()), "OMP_NUM_THREADS": "1"}
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
                    num_cpus=_LOGICAL_CPUS + 2 * cpus(),
                    object_store_memory=_OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    _temp_dir=str(scratch),
                )
                break
            except Exception as error:  # Ray has no class for it; usually its node took too long
                if attempt == _RAY_ATTEMPTS:
                    raise RuntimeFailure(
                        f"ray: did not start in {attempt} attempts ({type(error).__name__}); if other programs use "
                        "all processors or memory, stop some and start again"
                    ) from None
                ray.shutdown()
                watchdog.sweep(scratch, os.getpid())
        # Ray installed its own handlers, of which that for SIGTERM aborts.
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def _start_application(self) -> None:
        self._on_progress("starting Ray Serve", 0.4)
        from ray import serve
        from ray.serve.schema import LoggingConfig

        from services import app

        # After the import, which sets the level of this logger.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # The access log would hold the identifiers and mentions in URLs.
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        with contextlib.suppress(TimeoutError):  # the loop below keeps waiting
            serve.start(http_options=http_server.options(self.settings), logging_config=quiet)
        serve.run_many(
            [serve.RunTarget(target=app.app(), name=app.NAME, route_prefix="/", logging_config=quiet)],
            wait_for_applications_running=False,
        )
        while True:
            application = serve.status().applications.get(app.NAME)
            states = [d.status for d in application.deployments.values()] if application else []
            healthy = sum(state == "HEALTHY" for state in states)
            self._on_progress(
                f"starting services, {healthy} of {len(_SERVICES)} running", 0.5 + 0.4 * healthy / len(_SERVICES)
            )
            if application is not None and application.status == "RUNNING":
                break
            if application is not None and application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise RuntimeFailure(_reason(application))
            self.check()
            time.sleep(_POLL_S)
        # From here on documents can be in flight, which shutdown lets finish.
        self._cleanup.callback(_bounded, serve.shutdown, _STOP_S)
        while not self._ready():
            self.check()
            time.sleep(_POLL_S)

    def _ready(self) -> bool:
        try:
            answer = httpx.get(
                f"{self.http}/readyz", timeout=30.0, trust_env=False, verify=http_server.trust(self.settings)
            )
        except (httpx.HTTPError, OSError):
            return False
        if answer.status_code == 200:
            return True
        try:
            missing = answer.json()["missing"]
        except (ValueError, KeyError, TypeError):
            return False
        # A halt lasts over restarts, until somebody lifts it: there is nothing to wait for.
        return bool(missing) and all(str(line).startswith("ingest: halted") for line in missing)

    def _write_file(self, data: Path) -> None:
        addresses = Addresses(
            pid=os.getpid(),
            kafka=self.settings.kafka,
            redis=self.settings.redis.get_secret_value(),
            http_url=self.http,
            http_host=self.settings.http_host,
            http_port=self.settings.http_port,
        )
        file = data / RUNTIME_FILE
        file.unlink(missing_ok=True)
        self._cleanup.callback(file.unlink, missing_ok=True)
        # It holds Valkey's password, so it must never be readable by others, not even while it is being written.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(addresses.model_dump_json(indent=2))


def _replicas_of_generation() -> dict[str, str]:
    """Replicas on a CPU that share its cores; nothing if the environment sets their threads."""
    config = GenerationConfig()
    given = config.model_fields_set
    if "threads" in given or config.num_gpus or config.engine == "vllm":
        return {}
    cores = cpus()
    if {"min_replicas", "max_replicas"} & given:
        number = config.max_replicas if "max_replicas" in given else config.min_replicas
        fewest = config.min_replicas
    else:
        number = fewest = min(cores, _GENERATION_REPLICAS)
    values = {
        "GENERATION_MIN_REPLICAS": fewest,
        "GENERATION_MAX_REPLICAS": number,
        "GENERATION_THREADS": -(-cores // number),
        "PIPELINE_REQUESTS_IN_FLIGHT": number * _REQUESTS_PER_REPLICA,
    }
    return {f"BIOBRACKET_{name}": str(value) for name, value in values.items()}


def _reason(application: ApplicationStatusOverview) -> str:
    """The last line of what Serve says about a failed deployment: class and message of the error."""
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


def _bounded(call: Callable[[], object], seconds: float) -> None:
    """Call, but stop waiting after some time, so that a broken cluster cannot block the rest of the shutdown."""

    def quiet() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=quiet, daemon=True)
    thread.start()
    thread.join(seconds)
