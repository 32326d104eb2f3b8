from __future__ import annotations

import pytest

from tests.support.http import SECRET, World, assert_problem


def test_unknown_document(world: World) -> None:
    assert "dead-letters" in assert_problem(world.client.get("/v1/documents/nothing"), 404, "id")["remedy"]


def test_mentions(world: World) -> None:
    world.post({"id": "one", "text": "A"})
    world.post({"id": "two", "text": "a"})
    found = world.client.get("/v1/mentions", params={"text": " a ", "type": "disease"}).json()["mentions"]
    assert [m["document_id"] for m in found] == ["one", "two"]
    assert len(world.client.get("/v1/mentions", params={"text": "a", "limit": 1}).json()["mentions"]) == 1
    assert world.client.get("/v1/mentions", params={"text": "a", "type": "body"}).json() == {"mentions": []}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": "zq17" * 300}, "text"),
        ({"text": "a", "type": SECRET}, "type"),
        ({"text": "a", "limit": "0"}, "limit"),
        ({"text": "a", "limit": "51"}, "limit"),
        ({"text": "a", "limit": SECRET}, "limit"),
    ],
)
def test_wrong_parameter_of_mentions(world: World, params: dict[str, str], field: str) -> None:
    assert_problem(world.client.get("/v1/mentions", params=params), 422, field)
