from __future__ import annotations

import pytest
import redis

from services.embedded.servers import Valkey
from shared.backends.segment_traces import SegmentTraces
from tests.support.servers import Target

ONE, TWO = "bb:{aa}:s:one", "bb:{bb}:s:two"


@pytest.fixture
def traces(target: Target) -> SegmentTraces:
    target.everywhere("FLUSHALL")
    return SegmentTraces(target.client, target.client, 100)


def test_segments_go_with_their_document_and_others_stay(traces: SegmentTraces, target: Target) -> None:
    for name in ("shared", "own", "other"):
        target.client.set(f"bb:s:{{{name}}}", b"text")
    traces.note(ONE, ["bb:s:{shared}", "bb:s:{own}"])
    traces.note(TWO, ["bb:s:{shared}", "bb:s:{other}"])
    traces.note(TWO, [])
    assert 100 < target.client.ttl(ONE) <= 2 * 100 + 3600
    before = traces.removals()
    traces.remove(ONE)
    assert traces.removals() != before
    assert list(target.client.scan_iter(match="bb:s:*")) == [b"bb:s:{other}"]
    assert not target.client.exists(ONE)
    # What two documents share is gone; the second one's trace of it does no harm, also when it is erased.
    traces.remove(TWO)
    assert list(target.client.scan_iter(match="bb:s:*")) == []
    told = traces.removals()
    traces.remove(TWO)
    assert traces.removals() == told


def test_segments_on_a_server_of_their_own(target: Target, valkey: Valkey) -> None:
    target.everywhere("FLUSHALL")
    with redis.Redis.from_url(valkey.url) as cache:
        cache.set("bb:s:{x}", b"text")
        traces = SegmentTraces(target.client, cache, 0)
        traces.note(ONE, ["bb:s:{x}"])
        assert target.client.ttl(ONE) == -1
        traces.remove(ONE)
        assert not cache.exists("bb:s:{x}")
