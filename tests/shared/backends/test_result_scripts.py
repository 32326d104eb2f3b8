"""The scripts by themselves; what they are for is tested with the store."""

from __future__ import annotations

from typing import Any

import pytest

from shared.backends.result_scripts import ERASE, PUT, RESERVE, SWEEP, SWEPT
from tests.support.servers import Target

DOCUMENT, COUNTERS, MARK, INDEX = (f"bb:{{aa}}:{kind}" for kind in ("d:x", "n", "e:x", "i:x"))


def place(offset: int) -> tuple[object, ...]:
    return "t", "", 0, offset, 0


@pytest.fixture
def run(target: Target) -> Any:
    target.everywhere("FLUSHALL")

    def script(source: str, keys: list[str], *args: object) -> Any:
        return target.client.eval(source, len(keys), *keys, *args)

    return script


def test_who_reserved_before_a_sweep_reserves_again(run: Any) -> None:
    def put(version: str, offset: int, swept: bytes) -> bytes:
        keys = [DOCUMENT, COUNTERS, MARK]
        outcome: bytes = run(PUT, keys, version, "{}", 0, 0, *place(offset), 0, swept)[0]
        return outcome

    def reserve(version: str, offset: int) -> bytes | None:
        reserved: bytes | None = run(RESERVE, [DOCUMENT, INDEX], version, *place(offset), 0, "bb:m:{1}")
        return reserved

    first = reserve("v1", 1)
    assert first is not None
    assert put("v1", 1, first) == b"written"
    assert reserve("v1", 1) is None
    assert reserve("v0", 0) is None
    early = reserve("v2", 2)
    assert early is not None
    version, json, keys = run(SWEEP, [DOCUMENT, INDEX])
    assert (version, json, keys) == (b"v1", b"{}", [b"bb:m:{1}"])
    assert put("v2", 2, early) == b"again"
    within = reserve("v2", 2)
    assert within is not None
    assert run(SWEPT, [DOCUMENT, INDEX], "v1", "bb:m:{1}") == 1
    assert put("v2", 2, within) == b"again"
    again = reserve("v2", 2)
    assert again is not None
    assert put("v2", 2, again) == b"written"
    # A sweep that a version overtook has to look again, and takes no key from it.
    assert run(SWEPT, [DOCUMENT, INDEX], "v1", "bb:m:{1}") == 0
    assert run(SWEEP, [DOCUMENT, INDEX])[2] == [b"bb:m:{1}"]


def test_an_erasure_is_later_than_a_version_at_its_position(run: Any, target: Target) -> None:
    keys = [DOCUMENT, COUNTERS, MARK]
    assert run(ERASE, keys, "e5", 100, *place(5), 0)[0] == b"written"
    for offset, outcome in ((4, b"erased"), (5, b"erased"), (6, b"written")):
        assert run(PUT, keys, f"v{offset}", "{}", 0, 0, *place(offset), 0, "0")[0] == outcome
    assert target.client.ttl(DOCUMENT) == -1
    assert 0 < target.client.ttl(MARK) <= 100
    # The mark is known beside a later version, and does not fall back to an earlier erasure.
    assert run(ERASE, keys, "e3", 100, *place(3), 0)[0] == b"superseded"
    assert run(PUT, keys, "v4", "{}", 0, 0, *place(4), 0, "0")[0] == b"erased"
    assert run(ERASE, keys, "e6", 0, *place(6), 0)[0] == b"written"
    assert target.client.hgetall(COUNTERS) == {b"documents": b"0", b"entities": b"0"}
    assert (target.client.ttl(DOCUMENT), target.client.ttl(MARK)) == (-1, -1)
    assert run(ERASE, keys, "e6", 0, *place(6), 1) == [b"unchanged", None]


def test_sets_of_any_size_are_written(run: Any, target: Target) -> None:
    keys = [f"bb:m:{{{n}}}" for n in range(20_000)]
    assert run(RESERVE, [DOCUMENT, INDEX], "v", *place(0), 50, *keys) == b"0"
    assert target.client.scard(INDEX) == len(keys)
    assert 0 < target.client.ttl(INDEX) <= 50
    assert run(SWEPT, [DOCUMENT, INDEX], "", *keys) == 1
    assert not target.client.exists(INDEX)
