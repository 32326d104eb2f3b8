"""docs/operations.md against the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic_settings import BaseSettings

from services.cli.settings import configs
from shared.backends.records import DeadLetterReason
from shared.runtime.metrics import METRICS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()


def variables(config: BaseSettings) -> dict[str, str]:
    """Description by environment variable."""
    prefix = config.model_config.get("env_prefix", "")
    return {f"{prefix}{name}".upper(): field.description or "" for name, field in type(config).model_fields.items()}


def test_table_has_every_setting_with_its_description() -> None:
    expected = {name: text for config in configs() for name, text in variables(config).items()}
    rows = re.findall(r"^\| `(BIOBRACKET_\w+)` \| [^|]* \| (.*) \|$", TEXT, re.MULTILINE)
    assert dict(rows) == expected


def test_every_dead_letter_reason_is_explained() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)` \| .* \| .* \|$", TEXT, re.MULTILINE)) == set(get_args(DeadLetterReason))


@pytest.mark.parametrize("name", re.findall(r"ray_(biobracket_\w+?)(?:_total)?`", TEXT))
def test_metrics_exist(name: str) -> None:
    assert name in {metric.name for metric in METRICS}
