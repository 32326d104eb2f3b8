"""The same contract on every cache of segments."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from services.line_file import LineFile
from services.pipeline import cache as module
from services.pipeline.assembly import SegmentCache
from services.pipeline.cache import LocalCache
from shared.backends.result_store import ResultStore
from shared.settings import Settings


@pytest.fixture(params=["memory", "file", "store"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SegmentCache]:
    if request.param == "memory":
        yield LocalCache(2**24)
    elif request.param == "file":
        yield LineFile(tmp_path / "lines")
    else:
        url = request.getfixturevalue("valkey").url
        with redis.Redis.from_url(url) as client:
            client.flushall()
        store = ResultStore.from_settings(Settings(redis=SecretStr(url)))
        yield store
        store.close()


def test_what_was_put_comes_back_in_the_order_asked(cache: SegmentCache) -> None:
    values = {f"key {i}": bytes([i % 256, 0, 255]) for i in range(2000)} | {"empty": b""}
    cache.put_segments(values)
    assert cache.get_segments([*values, "no such"]) == [*values.values(), None]
    assert cache.get_segments([]) == []
    cache.put_segments({})
    cache.put_segments({"key 1": b"new"})
    assert cache.get_segments(["key 1", "key 0", "key 1"]) == [b"new", b"\x00\x00\xff", b"new"]


def test_threads_can_share_it(cache: SegmentCache) -> None:
    def work(i: int) -> list[bytes | None]:
        cache.put_segments({str(i): str(i).encode()})
        return cache.get_segments([str(i), str(i)])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(100))) == [[str(i).encode()] * 2 for i in range(100)]


ONE = module._OVERHEAD + 10  # bytes that a value of ten takes


def test_what_was_not_asked_for_longest_goes_first() -> None:
    local = LocalCache(2 * ONE)
    local.put_segments({"a": bytes(10), "b": bytes(10)})
    local.get_segments(["a"])
    local.put_segments({"c": bytes(10)})
    assert [value is not None for value in local.get_segments(["a", "b", "c"])] == [True, False, True]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3000)), max_size=40), st.integers(0, 5000))
def test_it_never_grows_beyond_its_size_nor_gives_what_was_replaced(puts: list[tuple[str, int]], size: int) -> None:
    local = LocalCache(size)
    last: dict[str, bytes] = {}
    for key, length in puts:
        last[key] = bytes(length)
        local.put_segments({key: last[key]})
        assert local._entries.currsize <= size
    for key, value in last.items():
        assert local.get_segments([key])[0] in (None, value)


def test_a_size_of_nothing_holds_nothing() -> None:
    local = LocalCache(0)
    local.put_segments({"a": b""})
    assert local.get_segments(["a"]) == [None]


def test_entries_end_with_their_time() -> None:
    now = 0.0
    some, for_good = LocalCache(10 * ONE, 60, lambda: now), LocalCache(10 * ONE, clock=lambda: now)
    for local in (some, for_good):
        local.put_segments({"a": b"1"})
    now = 59.0
    assert some.get_segments(["a"]) == [b"1"]
    now = 61.0
    assert some.get_segments(["a"]) == [None]
    assert for_good.get_segments(["a"]) == [b"1"]


def test_what_is_cleared_is_gone() -> None:
    cache = LocalCache(10**6)
    cache.put_segments({"a": b"1", "b": b"2"})
    cache.clear()
    assert cache.get_segments(["a", "b"]) == [None, None]
    cache.put_segments({"a": b"3"})
    assert cache.get_segments(["a"]) == [b"3"]
