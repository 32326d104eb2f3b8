from __future__ import annotations

from collections.abc import Iterator

from tests.support.http import World, assert_problem


def test_body_too_large(world: World) -> None:
    error = assert_problem(world.post({"text": "zq17" * 2000}), 413, "body")
    assert "BIOBRACKET_QUERY_MAX_BODY_BYTES" in error["remedy"]


def test_body_too_large_that_declares_no_length(world: World) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(100):
            yield b"zq17" * 100

    response = world.client.post("/v1/extract", content=chunks(), headers={"Content-Type": "application/json"})
    assert_problem(response, 413, "body")
