"""Every request that concerns a document leaves an entry that names its caller, and no answer leaves without one."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.audit_trail import AuditTrail, Verified, verify
from services.query.auth import key_file
from services.query.auth.scopes import SCOPES
from shared.backends.feedback_store import FeedbackStore
from shared.settings import Settings
from tests.support.http import SECRET, World, assert_problem

OPINION = {"id": "o", "text": "a cold room", "start": 2, "end": 6, "type": "disease", "accepted": False}


def told(lines: list[bytes]) -> list[tuple[str, str, str]]:
    """Caller, action and outcome of each entry."""
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [(entry["who"], entry["action"], entry["outcome"]) for entry in entries]


def subjects(lines: list[bytes]) -> list[str]:
    return [json.loads(line)["what"] for line in lines]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_each_request_is_told_with_its_caller_document_and_outcome(tmp_path: Path, settings: Settings) -> None:
    key, _ = key_file.create(tmp_path / "keys.json", "ward-3", SCOPES, 0, datetime.now(UTC))
    lines: list[bytes] = []
    store = FeedbackStore.from_settings(settings)
    world = World(store, AuditTrail(lines.append), api_keys=tmp_path / "keys.json")
    header = {"Authorization": f"Bearer {key}"}
    with world.client as client:
        client.get("/v1/documents/a%2Fb")
        client.post("/v1/extract", json={"id": "a/b", "text": SECRET}, headers=header)
        client.get("/v1/documents/a%2Fb", headers=header)
        client.get("/v1/mentions?text=Al%C3%A9", headers=header)
        client.post("/v1/feedback", json=OPINION, headers=header)
        client.delete("/v1/feedback/o", headers=header)
        client.delete("/v1/documents/a%2Fb", headers=header)
        client.get("/healthz")
        client.get("/openapi.json", headers=header)
    store.close()
    ward = "key:ward-3"
    assert told(lines) == [
        ("anybody", "read", "401"),
        (ward, "extract", "200"),
        (ward, "read", "200"),
        (ward, "search", "200"),
        (ward, "feedback", "201"),
        (ward, "feedback", "204"),
        (ward, "forget", "204"),
    ]
    assert subjects(lines) == [digest(text) for text in ("a/b", "a/b", "a/b", "Alé", "o", "o", "a/b")]
    assert list(verify(lines, Verified())) == []
    assert SECRET.encode() not in b"".join(lines)


def test_without_an_entry_there_is_no_answer() -> None:
    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    world = World(trail=AuditTrail(full))
    with world.client as client:
        world.store.results.clear()
        answer = client.get("/v1/documents/a")
        assert_problem(answer, 503, "system")
        assert answer.headers["Retry-After"]
        assert client.get("/healthz").status_code == 200
