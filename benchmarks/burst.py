"""A burst of requests over HTTP, against the rate that the same clients reach one after another in the same run.

    make burst ARGS='--times 20 --seconds 10'

First some clients extract short notes in turn, which gives the rate that the product keeps up with. Then notes come at
a multiple of it, whether the earlier ones are answered or not. What cannot be taken up has to be refused at once, with
``Retry-After``, while results and probes are still answered; memory has to stay bounded.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.hardware import hardware, make_command
from services.embedded.runtime import Runtime
from shared.model.revision import generator_revision
from shared.settings import Settings

REFUSED = (429, 503)
err = Console(stderr=True)


@dataclass
class Answers:
    """What came back: seconds by status, and refusals that did not say when to come again."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    without_retry_after: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    async def ask(self, client: httpx.AsyncClient, number: int) -> None:
        # Each note is another one, so that no segment is in the cache.
        body = {"text": f"Patient {number} has asthma and takes salbutamol.", "lang": "en"}
        start = time.perf_counter()
        try:
            answer = await client.post("/v1/extract", json=body)
        except httpx.HTTPError as error:
            self.failed[type(error).__name__] += 1
            return
        self.seconds.setdefault(answer.status_code, []).append(time.perf_counter() - start)
        self.without_retry_after += answer.status_code in REFUSED and "Retry-After" not in answer.headers

    @property
    def refused(self) -> list[float]:
        """Seconds of the refusals."""
        return [s for status in REFUSED for s in self.seconds.get(status, [])]


async def steady(client: httpx.AsyncClient, numbers: itertools.count[int], clients: int, seconds: float) -> float:
    """Notes a second of clients that each wait for their answer."""
    answers, end = Answers(), time.perf_counter() + seconds

    async def one() -> None:
        while time.perf_counter() < end:
            await answers.ask(client, next(numbers))

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    if list(answers.seconds) != [200]:
        raise SystemExit(f"the steady load was not answered: {sorted(answers.seconds)}, {dict(answers.failed)}")
    return len(answers.seconds[200]) / (time.perf_counter() - start)


async def burst(client: httpx.AsyncClient, numbers: itertools.count[int], rate: float, seconds: float) -> Answers:
    """Notes that come at a rate, answered or not."""
    answers, start = Answers(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for i in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, start + i / rate - time.perf_counter()))
            tasks.create_task(answers.ask(client, next(numbers)))
    return answers


async def probes(client: httpx.AsyncClient, seen: list[float]) -> None:
    """Asks for health until cancelled; seconds of each answer, infinite for a wrong one."""
    while True:
        start = time.perf_counter()
        answer = await client.get("/healthz")
        seen.append(time.perf_counter() - start if answer.status_code == 200 else float("inf"))
        await asyncio.sleep(0.5)


async def memory(seen: list[int]) -> None:
    """Resident bytes of this process's descendants, until cancelled."""
    while True:
        seen.append(resident())
        await asyncio.sleep(1.0)


def resident() -> int:
    """Resident bytes of all processes below this one."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total


async def measure(url: str, clients: int, times: float, seconds: float) -> dict[str, Any]:
    """The report's figures, of a running product."""
    numbers = itertools.count()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await steady(client, numbers, clients, 3.0)  # warm-up
        rate = await steady(client, numbers, clients, seconds)
        err.print(f"{rate:.1f} notes a second; now {times:g} times as many", highlight=False)
        before, sizes, health = resident(), [0], [0.0]
        watching = [asyncio.create_task(memory(sizes)), asyncio.create_task(probes(client, health))]
        answers = await burst(client, numbers, times * rate, seconds)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        after = await steady(client, numbers, clients, seconds)
    refused = answers.refused or [0.0]
    return {
        "steady_per_s": round(rate, 1),
        "burst_per_s": round(times * rate, 1),
        "answers": {str(status): len(found) for status, found in sorted(answers.seconds.items())},
        "failed": dict(answers.failed),
        "without_retry_after": answers.without_retry_after,
        "refused_s": {str(q): round(float(np.quantile(refused, q)), 3) for q in (0.5, 0.99, 1.0)},
        "healthz_s": round(max(health), 3),
        "memory_mib": {"before": before >> 20, "most": max(sizes) >> 20},
        "steady_again": round(after / rate, 2),
    }


def main(
    times: Annotated[float, typer.Option(min=1, help="Rate of the burst, in steady rates.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each phase.")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the steady load.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Refusals, their seconds, and memory in a burst."""
    with (
        tempfile.TemporaryDirectory(prefix="biobracket-burst-") as data,
        Runtime(Settings(data=Path(data), http_port=0)) as runtime,
    ):
        wait(runtime.http)
        figures = asyncio.run(measure(runtime.http, clients, times, seconds))
    report = {
        "command": make_command("burst"),
        "hardware": hardware(),
        "model_revision": generator_revision(Settings()),
        **figures,
    }
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    table = Table("figure", "value")
    for name, value in report.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    Console().print(table)


def wait(url: str) -> None:
    """Until the product is ready."""
    for _ in range(600):
        try:
            if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit("the product did not become ready in five minutes; run `biobracket up` to see why")


if __name__ == "__main__":
    typer.run(main)
