from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from services.generation import deployment
from services.generation.engine import Engine, TagRequest
from shared.errors import Overloaded
from shared.messages import Segment, TaggedLine

pytestmark = pytest.mark.anyio

GENERATION: Any = deployment.Generation.func_or_class
TYPES = ("protein", "disease")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Slow(Engine):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[TagRequest, Future[TaggedLine]]] = []

    def submit(self, request: TagRequest) -> Future[TaggedLine]:
        future: Future[TaggedLine] = Future()
        self.asked.append((request, future))
        return future

    def answer(self) -> None:
        for request, future in reversed(self.asked):  # not in the order in which they were asked
            if not future.cancelled():
                future.set_result(TaggedLine(segment=request.segment, types=request.types, tagged="", presence=0.0))
        self.asked.clear()


def segments(*texts: str) -> tuple[Segment, ...]:
    return tuple(
        Segment(document_id="d", index=i, start=0, end=len(text), text=text, lang="en") for i, text in enumerate(texts)
    )


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(deployment, "_CONFIG", deployment._CONFIG.model_copy(update={"max_queued": 3}))
    made = object.__new__(GENERATION)
    made._engine, made._under_way, made.seen = Slow(), 0, []
    made._observe = lambda metric, value: made.seen.append((metric.name, value))
    return made


async def asked(replica: Any, number: int) -> None:
    while len(replica._engine.asked) < number:
        await asyncio.sleep(0)


async def test_lines_come_segment_by_segment_with_their_types(replica: Any) -> None:
    answer = asyncio.create_task(replica.tag(segments("one", "two"), TYPES))
    await asked(replica, 2)
    replica._engine.answer()
    lines = await answer
    assert [(line.segment.text, line.types) for line in lines] == [("one", TYPES), ("two", TYPES)]
    assert [value for _, value in replica.seen] == [2, 0]


async def test_more_than_may_wait_are_put_off_but_a_large_request_alone_is_not(replica: Any) -> None:
    large = asyncio.create_task(replica.tag(segments("a", "b", "c", "d"), TYPES))
    await asked(replica, 4)
    with pytest.raises(Overloaded, match="BIOBRACKET_GENERATION_MAX_QUEUED"):
        await replica.tag(segments("e"), TYPES)
    replica._engine.answer()
    assert len(await large) == 4
    small = asyncio.create_task(replica.tag(segments("e"), TYPES))
    await asked(replica, 1)
    replica._engine.answer()
    assert len(await small) == 1


async def test_a_caller_that_has_gone_leaves_nothing_behind(replica: Any) -> None:
    gone = asyncio.create_task(replica.tag(segments("one", "two"), TYPES))
    await asked(replica, 2)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert all(future.cancelled() for _, future in replica._engine.asked)
    assert replica._under_way == 0
