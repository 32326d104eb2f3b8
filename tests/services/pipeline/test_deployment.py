from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from services.pipeline.deployment import PipelineService
from shared.messages import Segment, TaggedLine

SERVICE: Any = PipelineService.func_or_class


def test_no_more_requests_are_in_generation_than_allowed() -> None:
    running: list[int] = []
    most = 0

    async def tag(segments: tuple[Segment, ...], types: tuple[str, ...]) -> tuple[TaggedLine, ...]:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        await asyncio.sleep(0)
        running.pop()
        return ()

    async def burst() -> None:
        service = object.__new__(SERVICE)
        service._turns = asyncio.Semaphore(2)
        service._generation = SimpleNamespace(tag=SimpleNamespace(remote=tag))
        await asyncio.gather(*(service._generate((), ("Disease",)) for _ in range(5)))

    asyncio.run(burst())
    assert most == 2


def test_it_is_ready_when_all_that_it_calls_answers() -> None:
    asked: list[str] = []
    loaded = asyncio.Event()

    def call(name: str, result: Any) -> Any:
        async def remote(*_: Any) -> Any:
            await loaded.wait()
            asked.append(name)
            return result

        return SimpleNamespace(remote=remote)

    async def run() -> None:
        service = object.__new__(SERVICE)
        service._generation = SimpleNamespace(ready=call("generation", True))
        service._parsing = SimpleNamespace(parse=call("parsing", None))
        service._selection = SimpleNamespace(basis=call("selection", None))
        waiting = asyncio.create_task(service.ready())
        await asyncio.sleep(0)
        assert not waiting.done()
        loaded.set()
        assert await waiting

    asyncio.run(run())
    assert sorted(asked) == ["generation", "parsing", "selection"]
