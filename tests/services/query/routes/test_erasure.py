from __future__ import annotations

import pytest

from shared.errors import StoreError, StreamError
from tests.support.http import SECRET, World, assert_problem


def test_an_erased_document_is_gone_also_the_second_time(world: World) -> None:
    world.post({"id": "病历/1", "text": "A"})
    for _ in range(2):
        answer = world.client.delete("/v1/documents/%E7%97%85%E5%8E%86%2F1")
        assert (answer.status_code, answer.content) == (204, b"")
    assert_problem(world.client.get("/v1/documents/%E7%97%85%E5%8E%86%2F1"), 404, "id")
    assert world.erased == ["病历/1", "病历/1"]


@pytest.mark.parametrize(
    ("error", "field"), [(StoreError(SECRET, retryable=True), "store"), (StreamError(SECRET, retryable=True), "kafka")]
)
def test_what_is_away_is_told_and_the_request_can_be_sent_again(world: World, error: Exception, field: str) -> None:
    world.error = error
    answer = world.client.delete("/v1/documents/a")
    assert_problem(answer, 503, field)
    assert answer.headers["Retry-After"]


def test_an_id_that_is_too_long(world: World) -> None:
    assert_problem(world.client.delete("/v1/documents/" + "x" * 513), 422, "id")
    assert world.erased == []
