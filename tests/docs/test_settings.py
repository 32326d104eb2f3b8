"""docs/settings.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import cli
from services.cli.console import classes
from services.cli.settings import as_markdown
from training.config import CorpusConfig, GeneratorConfig, RunConfig, SelectorConfig

FILE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_is_what_the_code_generates() -> None:
    assert FILE.read_text(encoding="utf-8") == as_markdown(), "run: biobracket settings --markdown > docs/settings.md"


def test_has_every_setting_with_its_description() -> None:
    expected = [
        (f"{config.model_config['env_prefix']}{name}".upper(), field.description)
        for config in classes()
        for name, field in config.model_fields.items()
    ]
    assert len(expected) == len(dict(expected))
    assert re.findall(r"^\| `(BIOBRACKET_\w+)` \| [^|]* \| (.*) \|$", as_markdown(), re.MULTILINE) == expected


def test_has_every_field_of_training_with_its_description() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| [^|]* \| (.*) \|$", as_markdown(), re.MULTILINE)
    for config in (RunConfig, GeneratorConfig, SelectorConfig, CorpusConfig):
        assert {(name, field.description) for name, field in config.model_fields.items()} <= set(rows)


def test_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BIOBRACKET_REDIS", "redis://:hunter2@elsewhere:1/0")
    monkeypatch.setenv("BIOBRACKET_GENERATION_NUM_GPUS", "3")
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(cli, ["settings", "--markdown"])
    assert result.exit_code == 0
    assert result.output == FILE.read_text(encoding="utf-8")
