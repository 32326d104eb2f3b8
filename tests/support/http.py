"""The HTTP application over an extractor and a store of a test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi.testclient import TestClient

from services.audit_trail import AuditTrail
from services.query.api import create_app
from services.query.config import QueryConfig
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

    def __init__(self, feedback: Any = None, trail: AuditTrail | None = None, **settings: Any) -> None:
        """``settings``: of the query service."""
        self.store = Store()
        self.error: Exception | None = None
        self.delay = 0.0
        self.missing: Sequence[str] = ()
        self.erased: list[str] = []
        self.app = create_app(
            extractor=self.extract,
            result_store=self.store,
            missing=self.what_is_missing,
            config=QueryConfig(**{"max_body_bytes": 4096, "timeout_s": 0.5, "max_mentions": 50} | settings),
            feedback_store=feedback,
            erase=self.erase,
            trail=trail,
        )
        self.client = TestClient(self.app, raise_server_exceptions=False)

    async def extract(self, document: Document) -> Extraction:
        assert type(document) is Document
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error
        self.store.results[document.id] = extraction_of(document)
        return self.store.results[document.id]

    def erase(self, document_id: str) -> None:
        if self.error:
            raise self.error
        self.store.results.pop(document_id, None)
        self.erased.append(document_id)

    async def what_is_missing(self) -> Sequence[str]:
        return self.missing

    def post(self, body: Any) -> Any:
        return self.client.post("/v1/extract", json=body)

    def raw(self, body: bytes, kind: str = "application/json") -> Any:
        return self.client.post("/v1/extract", content=body, headers={"Content-Type": kind})


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
