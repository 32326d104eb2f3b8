"""`biobracket rebuild` as it is called; `audit` is called in tests/services/test_audit.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from services.cli import cli
from services.embedded.servers import Broker, Valkey
from shared.backends.result_store import ResultStore
from shared.backends.streams.sink import Sink
from shared.backends.streams.topics import ensure_topics
from shared.messages import Extraction, SourcePosition
from shared.settings import Settings


def test_rebuild(
    broker: Broker, valkey: Valkey, fresh: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = fresh(broker.url).model_copy(update={"redis": SecretStr(valkey.url)})
    ensure_topics(settings)
    store = ResultStore.from_settings(settings)
    store._client.flushall()
    source = SourcePosition(topic="t", partition=0, offset=0, timestamp_ms=0)
    extraction = Extraction(
        document_id="d", text_sha256="", lang="en", types=(), entities=(), source=source, model_revision="r"
    )
    sink = Sink(settings)
    sink.send(settings.topic_entities, b"d", extraction.model_dump_json().encode()).result(60)
    sink.close()
    monkeypatch.setenv("BIOBRACKET_KAFKA", settings.kafka)
    monkeypatch.setenv("BIOBRACKET_TOPIC_ENTITIES", settings.topic_entities)
    monkeypatch.setenv("BIOBRACKET_REDIS", valkey.url)
    result = CliRunner().invoke(cli, ["rebuild"])
    assert (result.exit_code, result.output) == (0, "1 results written, 0 there already\n")
    assert store.get("d") == extraction
    store.close()
    monkeypatch.setenv("BIOBRACKET_REDIS", "redis://127.0.0.1:1/0")
    result = CliRunner().invoke(cli, ["rebuild"])
    assert (result.exit_code, "BIOBRACKET_REDIS" in result.output) == (1, True)
