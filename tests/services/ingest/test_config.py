from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.ingest.config import IngestConfig
from shared.settings import problem


def test_a_heartbeat_too_slow_for_its_session_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_INGEST_SESSION_S", "9")
    monkeypatch.setenv("BIOBRACKET_INGEST_HEARTBEAT_S", "3")
    assert IngestConfig().heartbeat_s == 3
    monkeypatch.setenv("BIOBRACKET_INGEST_HEARTBEAT_S", "3.1")
    with pytest.raises(ValidationError) as error:
        IngestConfig()
    told = problem(error.value)
    assert told is not None
    assert "BIOBRACKET_INGEST_HEARTBEAT_S" in told
    assert "BIOBRACKET_INGEST_SESSION_S" in told


@pytest.mark.parametrize("name", ["a b", "pod/1", "名", "x" * 201])
def test_a_name_that_kafka_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="instance"):
        IngestConfig(instance=name)
