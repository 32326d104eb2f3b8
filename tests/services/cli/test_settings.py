from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from pydantic_settings import BaseSettings
from typer.testing import CliRunner

from services.cli import cli
from services.cli.console import configs

SECRET = "zq17"


def test_settings_lists_everything_and_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_KAFKA_SECURITY", json.dumps({"proxy_url": f"socks5://u:{SECRET}@proxy:1080"}))
    monkeypatch.setenv("BIOBRACKET_KAFKA_PASSWORD", SECRET)
    monkeypatch.setenv("BIOBRACKET_KAFKA_USER", "ner-{service}")
    monkeypatch.setenv("BIOBRACKET_REDIS", f"rediss://ner:{SECRET}@store:6379/0")
    monkeypatch.setenv("BIOBRACKET_REDIS_CACHE", f"rediss://ner:{SECRET}@store:6379/1")
    result = CliRunner().invoke(cli, ["settings"])
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert "proxy_url" in result.output
    assert "ner-{service}" in result.output
    found: Sequence[BaseSettings] = list(configs())
    assert len(found) == 7
    for config in found:
        for name, field in type(config).model_fields.items():
            assert f"{config.model_config['env_prefix']}{name}".upper() + "=" in result.output
            assert field.description, f"{type(config).__name__}.{name}"
