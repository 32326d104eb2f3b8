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
    monkeypatch.setenv(
        "BIOBRACKET_KAFKA_SECURITY", json.dumps({"sasl_plain_password": SECRET, "sasl_mechanism": "PLAIN"})
    )
    result = CliRunner().invoke(cli, ["settings"])
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert "PLAIN" in result.output
    found: Sequence[BaseSettings] = list(configs())
    assert len(found) == 7
    for config in found:
        for name, field in type(config).model_fields.items():
            assert f"{config.model_config['env_prefix']}{name}".upper() + "=" in result.output
            assert field.description, f"{type(config).__name__}.{name}"
