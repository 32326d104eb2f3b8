from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from services.query.api import create_app
from services.query.config import QueryConfig
from services.query.routes.extract import Busy
from shared.errors import DocumentError, StoreError
from shared.messages import Document, Extraction
from tests.support.http import SECRET, World, assert_problem, extraction_of


def test_extract_makes_an_id(world: World) -> None:
    response = world.post({"text": SECRET, "lang": "zh"})
    assert response.status_code == 200
    extraction = Extraction.model_validate_json(response.content)
    assert extraction.document_id
    assert extraction.lang == "zh"
    assert extraction.entities[0].text == SECRET[0]


def test_extract_keeps_the_id_and_the_types(world: World) -> None:
    response = world.post({"id": "a/b c", "text": "x", "types": ["body", "disease", "body"], "metadata": {"a": [1]}})
    assert response.json()["document_id"] == "a/b c"
    assert response.json()["types"] == ["body", "disease"]


@pytest.mark.parametrize("text", ["", "a\x00b", "🫀", "\r\n", "[[CD28]"])
def test_unusual_text_is_accepted(world: World, text: str) -> None:
    assert world.post({"text": text}).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        (None, "body"),
        (SECRET, "body"),
        ({}, "text"),
        ({"text": None}, "text"),
        ({"text": 7}, "text"),
        ({"text": [SECRET]}, "text"),
        ({"text": SECRET, "lang": "de"}, "lang"),
        ({"text": SECRET, "lang": SECRET}, "lang"),
        ({"text": SECRET, "types": "disease"}, "types"),
        ({"text": SECRET, "types": ["disease", SECRET]}, "types"),
        ({"text": SECRET, "types": [3]}, "types"),
        ({"text": SECRET, "types": []}, "types"),
        ({"text": SECRET, "types": ["disease"] * 65}, "types"),
        ({"text": SECRET, "id": ""}, "id"),
        ({"text": SECRET, "id": 5}, "id"),
        ({"text": SECRET, "id": "i" * 513}, "id"),
        ({"text": SECRET, "metadata": SECRET}, "metadata"),
        ({"text": SECRET, "v": 2}, "v"),
        ({"text": SECRET, SECRET: SECRET}, "body"),
        ({SECRET: 1}, "text"),
    ],
)
def test_wrong_field(world: World, body: Any, field: str) -> None:
    assert_problem(world.post(body), 422, field)


def test_unknown_types_remedy_lists_the_known(world: World) -> None:
    assert "microorganism" in assert_problem(world.post({"text": "x", "types": ["x"]}), 422, "types")["remedy"]


@pytest.mark.parametrize(
    ("error", "status", "field"),
    [
        (DocumentError("types", "names an unknown type", "see the list"), 422, "types"),
        (Busy(), 503, "system"),
        (StoreError(SECRET, retryable=True), 503, "store"),
        (RuntimeError(SECRET), 500, "system"),
    ],
)
def test_failure_of_the_extractor(
    world: World, error: Exception, status: int, field: str, capfd: pytest.CaptureFixture[str]
) -> None:
    world.error = error
    assert_problem(world.post({"text": SECRET}), status, field)
    assert "zq17" not in "".join(capfd.readouterr())


def test_one_extraction_too_many_is_refused_and_its_place_is_free_again(world: World) -> None:
    held = threading.Barrier(3)

    async def extract(document: Document) -> Extraction:
        await asyncio.to_thread(held.wait)
        return extraction_of(document)

    app = create_app(
        extractor=extract,
        result_store=world.store,
        missing=world.what_is_missing,
        config=QueryConfig(max_extractions=2),
        feedback_store=None,  # type: ignore[arg-type]  # not asked here
        erase=world.erase,
    )
    with TestClient(app) as client, ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            taken = [pool.submit(client.post, "/v1/extract", json={"text": "x"}) for _ in range(2)]
            while held.n_waiting < 2:
                time.sleep(0.01)
            refused = client.post("/v1/extract", json={"text": SECRET})
            assert "later" in assert_problem(refused, 503, "system")["remedy"]
            assert int(refused.headers["Retry-After"]) > 0
            assert client.get("/healthz").status_code == 200
            held.wait()
            assert [future.result().status_code for future in taken] == [200, 200]


def test_extraction_that_takes_too_long(world: World) -> None:
    world.delay = 30.0
    assert_problem(world.post({"text": SECRET}), 504, "text")
