"""`biobracket rebuild` as it is called; `audit` is called in tests/services/test_audit.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from services.audit_trail import AuditTrail
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


def test_a_changed_trail_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_AUDIT_KEY", "k")
    assert CliRunner().invoke(cli, ["audit", "verify"]).exit_code == 1
    monkeypatch.setenv("BIOBRACKET_AUDIT", str(tmp_path))
    trail = AuditTrail.in_folder(tmp_path, b"k")
    trail.add("ward-7", "read", "note-1", "200")
    trail.add("ward-7", "read", "note-2", "404")
    trail.close()
    result = CliRunner().invoke(cli, ["audit", "verify"])
    assert (result.exit_code, result.output) == (0, "3 entries in 1 chains, 0 of them without an end; 0 flaws\n")
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes().replace(b"404", b"200"))
    result = CliRunner().invoke(cli, ["audit", "verify", str(file)])
    assert (result.exit_code, f"{file}:2: was changed" in result.output) == (1, True)
    monkeypatch.delenv("BIOBRACKET_AUDIT_KEY")
    assert CliRunner().invoke(cli, ["audit", "verify"]).exit_code == 1
