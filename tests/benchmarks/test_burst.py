"""The load and what is counted of it, on a server that takes up two notes at a time."""

from __future__ import annotations

import asyncio
import itertools

import httpx
import pytest
from fastapi import FastAPI, Response

from benchmarks.burst import Answers, burst, resident, steady


def client(*, retry_after: bool = True) -> httpx.AsyncClient:
    app, under_way = FastAPI(), 0

    @app.post("/v1/extract")
    async def extract(response: Response, note: dict[str, str]) -> None:
        nonlocal under_way
        if under_way == 2:
            response.status_code = 503
            if retry_after:
                response.headers["Retry-After"] = "5"
            return
        under_way += 1
        await asyncio.sleep(0.05)
        under_way -= 1

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")


def test_what_is_refused_is_counted() -> None:
    async def run(*, retry_after: bool) -> Answers:
        async with client(retry_after=retry_after) as one:
            return await burst(one, itertools.count(), rate=400, seconds=0.25)

    polite, other = asyncio.run(run(retry_after=True)), asyncio.run(run(retry_after=False))
    assert set(polite.seconds) == {200, 503}
    assert sum(map(len, polite.seconds.values())) == 100
    assert (polite.without_retry_after, other.without_retry_after) == (0, len(other.refused))
    assert len(other.refused) > 0


def test_a_steady_load_has_to_be_answered() -> None:
    async def run(clients: int) -> float:
        async with client() as one:
            return await steady(one, itertools.count(), clients, 0.2)

    assert asyncio.run(run(2)) > 1
    with pytest.raises(SystemExit, match="503"):
        asyncio.run(run(9))


def test_a_server_that_is_away_is_no_answer() -> None:
    async def run() -> Answers:
        async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as one:
            return await burst(one, itertools.count(), rate=10, seconds=0.1)

    assert asyncio.run(run()).failed == {"ConnectError": 1}
    assert resident() >= 0
