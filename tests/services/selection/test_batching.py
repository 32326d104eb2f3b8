import asyncio
import threading

import pytest

from services.generation.engine import TagRequest
from services.selection.batching import Batcher
from shared.errors import Overloaded
from shared.messages import Segment, TaggedLine

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def request(text: str) -> TagRequest:
    return TagRequest(Segment(document_id="d", index=0, start=0, end=len(text), text=text, lang="en"), ("protein",))


class Engine:
    """Answers each request with a line of its own text; a text's length is its cost."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.go.set()

    def tokens(self, request):
        return len(request.segment.text)

    def tag(self, requests):
        self.go.wait(30)
        self.batches.append([r.segment.text for r in requests])
        if any(r.segment.text == "boom" for r in requests):
            raise RuntimeError("engine")
        return [TaggedLine(segment=r.segment, types=r.types, tagged=r.segment.text, presence=1.0) for r in requests]


def texts(results):
    return [line.tagged for line in results]


async def test_everyone_gets_their_own(batcher_of):
    engine, batcher = batcher_of(budget=10)
    answers = await asyncio.gather(*(batcher.ask([request(t), request(t * 2)]) for t in ("a", "bb", "ccc")))
    assert [texts(a) for a in answers] == [["a", "aa"], ["bb", "bbbb"], ["ccc", "cccccc"]]
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 10 for batch in engine.batches)
    assert sum(map(len, engine.batches)) == 6


async def test_a_request_above_the_budget_goes_alone(batcher_of):
    engine, batcher = batcher_of(budget=3)
    assert texts(await batcher.ask([request("a"), request("bbbbbb"), request("c")])) == ["a", "bbbbbb", "c"]
    assert ["bbbbbb"] in engine.batches


async def test_a_failing_batch_fails_its_callers_only(batcher_of):
    _, batcher = batcher_of(budget=4)
    with pytest.raises(RuntimeError, match="engine"):
        await batcher.ask([request("boom")])
    assert texts(await batcher.ask([request("fine")])) == ["fine"]


async def test_a_full_queue_refuses(batcher_of):
    engine, batcher = batcher_of(budget=1, max_queued=2)
    engine.go.clear()
    first = asyncio.ensure_future(batcher.ask([request("a"), request("b"), request("c")]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="MAX_QUEUED"):
        await batcher.ask([request("d")])
    engine.go.set()
    assert texts(await first) == ["a", "b", "c"]


async def test_a_cancelled_caller_costs_nothing_more(batcher_of):
    engine, batcher = batcher_of(budget=1)
    engine.go.clear()
    first = asyncio.ensure_future(batcher.ask([request("a")]))
    second = asyncio.ensure_future(batcher.ask([request("b")]))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    engine.go.set()
    assert texts(await first) == ["a"]
    assert texts(await batcher.ask([request("c")])) == ["c"]
    assert ["b"] not in engine.batches


async def test_nothing_asked(batcher_of):
    _, batcher = batcher_of(budget=1)
    assert await batcher.ask([]) == []


@pytest.fixture
def batcher_of():
    made = []

    def make(*, budget, max_queued=100):
        engine = Engine()
        batcher = Batcher(engine.tag, engine.tokens, batch_tokens=budget, max_queued=max_queued, full="MAX_QUEUED")
        made.append(batcher)
        return engine, batcher

    yield make
    for batcher in made:
        batcher._executor.shutdown()
