from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from services.query.api import Busy, create_app
from services.query.config import QueryConfig
from shared.backends.feedback_store import FeedbackStore
from shared.errors import DocumentError, StoreError
from shared.messages import Document, Entity, Extraction, Mention, entity_id

SECRET = "患者王小明因右肺腺癌入院 zq17"


def extraction_of(document: Document) -> Extraction:
    """An entity on the first character, where there is one."""
    entities = ()
    if document.text:
        entities = (
            Entity(
                id=entity_id("disease", 0, 1),
                start=0,
                end=1,
                text=document.text[:1],
                type="disease",
                confidence=0.9,
                generator_confidence=0.8,
            ),
        )
    return Extraction(
        document_id=document.id,
        text_sha256=document.sha256,
        lang=document.lang or "en",
        types=document.types or ("disease",),
        entities=entities,
        model_revision="0" * 16,
    )


class Store:
    """A store of what the application extracted."""

    def __init__(self) -> None:
        self.results: dict[str, Extraction] = {}
        self.error: Exception | None = None

    def get(self, document_id: str) -> Extraction | None:
        if self.error:
            raise self.error
        return self.results.get(document_id)

    def mentions(self, text: str, type: str | None, limit: int = 100) -> list[Mention]:
        found = [
            Mention(document_id=x.document_id, entity=e)
            for x in self.results.values()
            for e in x.entities
            if e.text.casefold() == text.strip().casefold() and type in (None, e.type)
        ]
        return found[:limit]


class World:
    """The application and what it stands on."""

    def __init__(self, reviews: Any = None) -> None:
        self.store = Store()
        self.error: Exception | None = None
        self.delay = 0.0
        self.missing: Sequence[str] = ()
        config = QueryConfig(max_body_bytes=4096, timeout_s=0.5, max_mentions=50)
        self.client = TestClient(
            create_app(
                extract=self.extract,
                store=self.store,
                missing=self.what_is_missing,
                config=config,
                reviews=reviews,
            ),
            raise_server_exceptions=False,
        )

    async def extract(self, document: Document) -> Extraction:
        assert type(document) is Document
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error
        self.store.results[document.id] = extraction_of(document)
        return self.store.results[document.id]

    async def what_is_missing(self) -> Sequence[str]:
        return self.missing

    def post(self, body: Any) -> Any:
        return self.client.post("/v1/extract", json=body)

    def raw(self, body: bytes, kind: str = "application/json") -> Any:
        return self.client.post("/v1/extract", content=body, headers={"Content-Type": kind})


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    with made.client:
        yield made


def assert_problem(response: Any, status: int, field: str) -> dict[str, str]:
    """The response is an error of the one format, says what to do and does not repeat the text."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"field", "problem", "remedy"}
    assert body["error"]["field"] == field
    assert body["error"]["problem"]
    assert body["error"]["remedy"]
    assert SECRET not in response.text
    assert "zq17" not in response.text
    return dict(body["error"])


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


@pytest.mark.parametrize("escape", [b"\\ud800", b"\\udc00", b"\\ud83d x"])
@pytest.mark.parametrize("field", ["text", "id"])
def test_lone_surrogate(world: World, escape: bytes, field: str) -> None:
    other = b"" if field == "text" else b', "text": "x"'
    response = world.raw(b'{"%s": "zq17 %s"%s}' % (field.encode(), escape, other))
    assert "surrogate" in assert_problem(response, 422, field)["problem"]


def test_unknown_types_remedy_lists_the_known(world: World) -> None:
    assert "microorganism" in assert_problem(world.post({"text": "x", "types": ["x"]}), 422, "types")["remedy"]


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


def test_extraction_that_takes_too_long(world: World) -> None:
    world.delay = 30.0
    assert_problem(world.post({"text": SECRET}), 504, "text")


@pytest.mark.parametrize("id_", ["note-1", "a/b", "病历-2", "a b?c#d", "x" * 512, "a\nb"])
def test_document_by_id(world: World, id_: str) -> None:
    world.post({"id": id_, "text": "x"})
    response = world.client.get(f"/v1/documents/{quote(id_)}")
    assert response.status_code == 200
    assert Extraction.model_validate_json(response.content).document_id == id_


def test_unknown_document(world: World) -> None:
    assert "dead-letters" in assert_problem(world.client.get("/v1/documents/nothing"), 404, "id")["remedy"]


@pytest.mark.parametrize("id_", ["", "y" * 513])
def test_document_id_of_a_wrong_length(world: World, id_: str) -> None:
    assert_problem(world.client.get(f"/v1/documents/{id_}"), 422, "id")


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


def test_store_that_fails(world: World) -> None:
    world.store.error = StoreError(SECRET, retryable=True)
    assert_problem(world.client.get("/v1/documents/a"), 503, "store")


def test_health(world: World) -> None:
    assert world.client.get("/healthz").json() == {"status": "alive"}
    assert world.client.get("/readyz").json() == {"status": "ready"}
    world.missing = ("store: does not answer; check BIOBRACKET_REDIS",)
    response = world.client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "missing": list(world.missing)}
    assert world.client.get("/healthz").status_code == 200


def test_unknown_address_and_method(world: World) -> None:
    assert_problem(world.client.get("/v2/zq17"), 404, "path")
    assert_problem(world.client.get("/v1/extract"), 405, "method")


def test_openapi_describes_everything(world: World) -> None:
    schema = world.client.get("/openapi.json").json()
    operations = [o for path in schema["paths"].values() for o in path.values()]
    assert len(operations) == 8
    for operation in operations:
        assert operation["summary"]
        assert operation["description"]
        for parameter in operation.get("parameters", ()):
            assert parameter["description"]
    for name, model in schema["components"]["schemas"].items():
        if name in ("HTTPValidationError", "ValidationError"):
            pytest.fail("the 422 answers have the format of every other error")
        for field, described in model.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field}"
    assert schema["components"]["schemas"]["ExtractRequest"]["examples"]
    assert schema["components"]["schemas"]["Failure"]["examples"]
    for example in schema["components"]["schemas"]["ExtractRequest"]["examples"]:
        assert world.post(example).status_code == 200


@pytest.fixture
def reviewed(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world whose selector learns."""
    reviews = FeedbackStore.from_settings(request.getfixturevalue("settings"))  # not hypothesis's
    made = World(reviews)
    with made.client:
        yield made
    reviews.close()


OPINION = {"text": SECRET, "start": 6, "end": 10, "type": "disease", "accepted": False, "reviewer": "a.chen"}


def test_feedback_is_kept_listed_and_taken_back(reviewed: World) -> None:
    before = time.time()
    given = reviewed.client.post("/v1/feedback", json=OPINION)
    assert given.status_code == 201
    assert given.json().items() >= OPINION.items()
    assert before <= given.json()["time"] <= time.time()
    second = reviewed.client.post("/v1/feedback", json=OPINION | {"id": "a/b", "accepted": True}).json()
    page = reviewed.client.get("/v1/feedback", params={"limit": 1}).json()
    assert page["feedback"] == [second]
    rest = reviewed.client.get("/v1/feedback", params={"before": page["next"]}).json()
    assert (rest["feedback"], rest["next"]) == ([given.json()], None)
    assert reviewed.client.delete("/v1/feedback/a/b").status_code == 204
    assert_problem(reviewed.client.delete("/v1/feedback/a/b"), 404, "id")
    assert reviewed.client.get("/v1/feedback").json()["feedback"] == [given.json()]


def test_an_older_opinion_does_not_replace_a_newer_one(reviewed: World) -> None:
    assert reviewed.client.post("/v1/feedback", json=OPINION | {"time": 5}).status_code == 201
    assert_problem(reviewed.client.post("/v1/feedback", json=OPINION | {"time": 4}), 409, "time")
    assert reviewed.client.post("/v1/feedback", json=OPINION | {"time": 6, "accepted": True}).status_code == 201
    (kept,) = reviewed.client.get("/v1/feedback").json()["feedback"]
    assert kept["accepted"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({}, "text"),
        (OPINION | {"text": ""}, "text"),
        (OPINION | {"start": -1}, "start"),
        (OPINION | {"start": "zq17"}, "start"),
        (OPINION | {"end": 6}, "end"),
        (OPINION | {"end": 99}, "end"),
        (OPINION | {"end": 13}, "start"),
        (OPINION | {"type": SECRET}, "type"),
        (OPINION | {"accepted": SECRET}, "accepted"),
        (OPINION | {"lang": "de"}, "lang"),
        (OPINION | {"reviewer": 7}, "reviewer"),
        (OPINION | {"time": "zq17"}, "time"),
        (OPINION | {"zq17": 1}, "body"),
        ({name: value for name, value in OPINION.items() if name != "accepted"}, "accepted"),
    ],
)
def test_wrong_feedback(reviewed: World, body: Any, field: str) -> None:
    assert_problem(reviewed.client.post("/v1/feedback", json=body), 422, field)


FIELDS = st.sampled_from(["id", "text", "lang", "types", "metadata", "v", "zq17"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([SECRET, "zh", "disease"])
VALUES = st.recursive(
    LEAVES | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(body=st.binary(max_size=60) | st.dictionaries(FIELDS, VALUES, max_size=4).map(lambda d: json.dumps(d).encode()))
def test_no_body_breaks_it(body: bytes) -> None:
    response = WORLD.raw(body)
    assert response.status_code in (200, 400, 422)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"field", "problem", "remedy"}
        assert "zq17" not in response.text


@settings(deadline=None, max_examples=150)
@given(path=st.text(max_size=20), params=st.dictionaries(st.sampled_from(["text", "type", "limit"]), st.text()))
def test_no_address_breaks_it(path: str, params: dict[str, str]) -> None:
    # `surrogatepass`: bytes that are not UTF-8 in the address.
    for address in (f"/v1/documents/{quote(path.encode(errors='surrogatepass'))}", "/v1/mentions"):
        if address == "/v1/documents/":
            continue
        assert WORLD.client.get(address, params=params).status_code in (200, 404, 422)


WORLD = World()
