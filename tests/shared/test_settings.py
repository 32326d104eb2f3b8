from __future__ import annotations

import pytest
from pydantic import ValidationError

from shared.settings import Settings


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_field_is_described(name: str) -> None:
    assert Settings.model_fields[name].description


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_KAFKA", "broker-1:9092,broker-2:9092")
    monkeypatch.setenv("BIOBRACKET_KAFKA_SECURITY", '{"security_protocol": "SSL"}')
    monkeypatch.setenv("BIOBRACKET_PARTITIONS", "12")
    settings = Settings()
    assert settings.kafka == "broker-1:9092,broker-2:9092"
    assert settings.kafka_security == {"security_protocol": "SSL"}
    assert settings.partitions == 12


def test_the_password_of_the_store_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_REDIS", "redis://:hunter2@store:6379/0")
    assert "hunter2" not in repr(Settings())


def test_a_bad_value_names_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_LOG_FORMAT", "xml")
    with pytest.raises(ValidationError, match="log_format"):
        Settings()
