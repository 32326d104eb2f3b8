from __future__ import annotations

from pathlib import Path

import pytest

from shared.backends.result_store import ResultStore
from shared.backends.streams import client
from shared.backends.streams.topics import ensure_topics
from shared.messages import Entity, Extraction, entity_id
from shared.settings import Settings
from tests.support.cli import SECRET


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No application is running where the commands look for it."""
    monkeypatch.setenv("BIOBRACKET_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BIOBRACKET_KAFKA", "127.0.0.1:9")
    monkeypatch.setenv("BIOBRACKET_REDIS", f"redis://:{SECRET}@127.0.0.1:9/0")
    monkeypatch.setenv("BIOBRACKET_HTTP_PORT", "9")
    monkeypatch.setattr(client, "CONNECT_MS", 1000)


@pytest.fixture
def servers(nothing_runs: None, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Settings:
    """Broker and store, to which the command is pointed, without services."""
    ensure_topics(settings)
    monkeypatch.setenv("BIOBRACKET_KAFKA", settings.kafka)
    monkeypatch.setenv("BIOBRACKET_REDIS", settings.redis.get_secret_value())
    for topic in ("documents", "entities", "dead_letters", "feedback"):
        monkeypatch.setenv(f"BIOBRACKET_TOPIC_{topic}".upper(), getattr(settings, f"topic_{topic}"))
    return settings


@pytest.fixture
def stored(servers: Settings) -> Extraction:
    """A result in the store, with one entity."""
    entity = Entity(
        id=entity_id("disease", 0, 4),
        start=0,
        end=4,
        text="右肺腺癌",
        type="disease",
        confidence=0.9,
        generator_confidence=0.9,
    )
    extraction = Extraction(
        document_id="病历/1",
        text_sha256="0" * 64,
        lang="zh",
        types=("disease",),
        entities=(entity,),
        model_revision="0" * 16,
    )
    store = ResultStore.from_settings(servers)
    store.put(extraction)
    store.close()
    return extraction
