from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from shared.backends.feedback_store import FeedbackStore
from shared.settings import Settings
from tests.support.http import SECRET, World, assert_problem


@pytest.fixture
def reviewed(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world whose selector learns."""
    store = FeedbackStore.from_settings(request.getfixturevalue("settings"))  # not hypothesis's
    made = World(store)
    with made.client:
        yield made
    store.close()


REJECTED = {"text": SECRET, "start": 6, "end": 10, "type": "disease", "accepted": False, "reviewer": "a.chen"}


def test_feedback_is_kept_listed_and_taken_back(reviewed: World) -> None:
    before = time.time()
    given = reviewed.client.post("/v1/feedback", json=REJECTED)
    assert given.status_code == 201
    assert given.json().items() >= REJECTED.items()
    assert before <= given.json()["time"] <= time.time()
    second = reviewed.client.post("/v1/feedback", json=REJECTED | {"id": "a/b", "accepted": True}).json()
    page = reviewed.client.get("/v1/feedback", params={"limit": 1}).json()
    assert page["feedback"] == [second]
    rest = reviewed.client.get("/v1/feedback", params={"before": page["next"]}).json()
    assert (rest["feedback"], rest["next"]) == ([given.json()], None)
    assert reviewed.client.delete("/v1/feedback/a/b").status_code == 204
    assert_problem(reviewed.client.delete("/v1/feedback/a/b"), 404, "id")
    assert reviewed.client.get("/v1/feedback").json()["feedback"] == [given.json()]


def test_older_feedback_does_not_replace_newer(reviewed: World) -> None:
    assert reviewed.client.post("/v1/feedback", json=REJECTED | {"time": 5}).status_code == 201
    assert_problem(reviewed.client.post("/v1/feedback", json=REJECTED | {"time": 4}), 409, "time")
    assert reviewed.client.post("/v1/feedback", json=REJECTED | {"time": 6, "accepted": True}).status_code == 201
    (kept,) = reviewed.client.get("/v1/feedback").json()["feedback"]
    assert kept["accepted"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({}, "text"),
        (REJECTED | {"text": ""}, "text"),
        (REJECTED | {"start": -1}, "start"),
        (REJECTED | {"start": "zq17"}, "start"),
        (REJECTED | {"end": 6}, "end"),
        (REJECTED | {"end": 99}, "end"),
        (REJECTED | {"end": 13}, "start"),
        (REJECTED | {"type": SECRET}, "type"),
        (REJECTED | {"accepted": SECRET}, "accepted"),
        (REJECTED | {"lang": "de"}, "lang"),
        (REJECTED | {"reviewer": 7}, "reviewer"),
        (REJECTED | {"time": "zq17"}, "time"),
        (REJECTED | {"zq17": 1}, "body"),
        ({name: value for name, value in REJECTED.items() if name != "accepted"}, "accepted"),
    ],
)
def test_wrong_feedback(reviewed: World, body: Any, field: str) -> None:
    assert_problem(reviewed.client.post("/v1/feedback", json=body), 422, field)


def test_where_no_text_is_kept_there_is_no_feedback(settings: Settings) -> None:
    with closing(FeedbackStore.from_settings(settings.model_copy(update={"store_text": "none"}))) as store:
        world = World(store)
        with world.client:
            refused = world.client.post("/v1/feedback", json=REJECTED)
            assert_problem(refused, 409, "text")
            assert "BIOBRACKET_STORE_TEXT" in refused.text
            assert world.client.get("/v1/feedback").json()["feedback"] == []
