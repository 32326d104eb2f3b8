"""The servers and services behind ``up`` and ``demo``: started, watched and stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from services.cli.console import configs, err, fail, out, progress_bar, warn
from shared.settings import Settings

if TYPE_CHECKING:
    from services.cli.rendering import LiveCounts
    from services.embedded.runtime import Runtime

_TICK_S = 2.0


@contextmanager
def started(settings: Settings) -> Iterator[Runtime]:
    """A running runtime, which Ctrl-C, SIGTERM and SIGHUP stop before they end the program quietly."""
    list(configs())  # a setting that no replica could read fails here, in one line
    with ray_silenced():
        yield from _run(settings)


@contextmanager
def ray_silenced() -> Iterator[None]:
    """Ray prints errors of other processes to ``sys.stdout`` whatever its logging level, and they may hold text."""
    out.file = sys.stdout
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        out.file = None  # type: ignore[assignment]  # follows sys.stdout again


def _run(settings: Settings) -> Iterator[Runtime]:
    from services.embedded.runtime import Runtime, RuntimeFailure
    from shared.errors import BackendError

    def interrupt(number: int, _: object) -> NoReturn:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, interrupt)
    failure: str | None = None
    with progress_bar() as progress:
        task = progress.add_task("starting", total=1.0)
        last = ""

        def show(stage: str, done: float) -> None:
            nonlocal last
            progress.update(task, description=stage, completed=done)
            if not err.is_terminal and stage != last:
                err.print(stage, markup=False, highlight=False)
            last = stage

        runtime = Runtime(settings, show)
        try:
            runtime.start()
        except RuntimeFailure as error:
            failure = str(error)
        except (KeyboardInterrupt, SystemExit):
            failure = "interrupted"
    if failure is not None:
        fail(failure)
    try:
        yield runtime
    except KeyboardInterrupt:
        pass
    except (RuntimeFailure, BackendError) as error:
        failure = str(error)
    finally:
        # A second signal exits at once and leaves the rest to the watchdog.
        for number in numbers:
            signal.signal(number, lambda *_: os._exit(130))
        with progress_bar() as progress:
            progress.add_task("stopping", total=None)
            runtime.stop()
    if failure is not None:
        fail(failure)


def print_addresses(runtime: Runtime) -> None:
    from services.query.config import QueryConfig

    for name, address in (
        ("HTTP", f"{runtime.http} (try {runtime.http}/docs)" if not QueryConfig().authenticates else runtime.http),
        ("Kafka", runtime.settings.kafka),
        ("Redis", f"password in {runtime.settings.data / 'biobracket.json'}"),
        ("data", str(runtime.settings.data.resolve())),
    ):
        out.print(f"{name:<6} {address}", highlight=False, soft_wrap=True)
    out.print("In another shell: biobracket produce FILE, biobracket get ID.", highlight=False, soft_wrap=True)
    out.print("Ctrl-C stops everything.")


def watch(runtime: Runtime) -> None:
    """Show the counts until interrupted: in place on a terminal, else a line whenever they change."""
    from rich.live import Live

    from services.cli.rendering import counts_table

    if out.is_terminal:
        with Live(console=out, refresh_per_second=4, transient=True) as live:
            for counts in _counts(runtime):
                live.update(counts_table(counts))
    else:
        last = ""
        for counts in _counts(runtime):
            if str(counts) != last:
                last = str(counts)
                out.print(last, highlight=False)


def _counts(runtime: Runtime) -> Iterator[LiveCounts]:
    """The counts every two seconds, except while store or broker do not answer."""
    from services.cli.rendering import LiveCounts
    from services.ingest.config import IngestConfig
    from shared.backends.result_store import ResultStore
    from shared.backends.streams.scan import Lag
    from shared.errors import BackendError

    settings = runtime.settings
    store = ResultStore.from_settings(settings)
    lag = Lag(settings, IngestConfig().group, settings.topic_documents)
    before, then, rate = None, time.monotonic(), 0.0
    while True:
        runtime.check()
        try:
            counts, now = store.counts(), time.monotonic()
            if before is not None:
                rate = max(0, counts["documents"] - before) / (now - then)
            before, then = counts["documents"], now
            yield LiveCounts(counts["documents"], counts["entities"], lag.read(), rate)
        except BackendError as error:
            warn(str(error))
        time.sleep(_TICK_S)
