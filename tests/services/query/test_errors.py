from __future__ import annotations

import json

import pytest

from shared.errors import StoreError
from tests.support.http import SECRET, World, assert_problem


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1,", SECRET.encode(), b"\xff\xfe", SECRET.encode("gb18030"), b"[" * 4000, b'{"v": ' + b"1" * 4000],
)
def test_body_that_is_not_json(world: World, body: bytes) -> None:
    response = world.raw(body)
    assert response.status_code in (400, 422)
    assert_problem(response, response.status_code, "body")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_other_content_type(world: World, kind: str) -> None:
    error = assert_problem(world.raw(json.dumps({"text": SECRET}).encode(), kind), 422, "body")
    assert "application/json" in error["remedy"]


@pytest.mark.parametrize("escape", [b"\\ud800", b"\\udc00", b"\\ud83d x"])
@pytest.mark.parametrize("field", ["text", "id"])
def test_lone_surrogate(world: World, escape: bytes, field: str) -> None:
    other = b"" if field == "text" else b', "text": "x"'
    response = world.raw(b'{"%s": "zq17 %s"%s}' % (field.encode(), escape, other))
    assert "surrogate" in assert_problem(response, 422, field)["problem"]


def test_store_that_fails(world: World) -> None:
    world.store.error = StoreError(SECRET, retryable=True)
    assert_problem(world.client.get("/v1/documents/a"), 503, "store")


def test_unknown_address_and_method(world: World) -> None:
    assert_problem(world.client.get("/v2/zq17"), 404, "path")
    assert_problem(world.client.get("/v1/extract"), 405, "method")
