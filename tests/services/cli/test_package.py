"""The command as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import cli

COMMANDS = ("up", "demo", "produce", "get", "extract", "status", "settings")
SECRET = "zq17"


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BIOBRACKET_DATA", str(tmp_path / "data"))


def refused(arguments: Sequence[str]) -> str:
    """The one line of a command that ends at a setting."""
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert SECRET not in result.output
    (line,) = result.stderr.splitlines()
    return line


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", output)
        assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0


def test_help_needs_no_heavy_import() -> None:
    code = "import services.cli, sys; print([m for m in ('ray', 'torch', 'kafka', 'redis') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BIOBRACKET_KAFKA_SECURITY", f"{{security_protocol: {SECRET}}}"),
        ("BIOBRACKET_REDIS", f"redis://:{SECRET}/@127.0.0.1:9/0"),
        ("BIOBRACKET_PARTITIONS", SECRET),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ("up",),
        ("demo",),
        ("produce", "-"),
        ("get", "a"),
        ("extract", "-"),
        ("status",),
        ("settings",),
        ("evaluate", "--corpus", "none"),
        ("candidates", "--corpus", "none", "--out", "none"),
        ("train", "gazetteer"),
        ("train", "calibration"),
        ("index", "info"),
    ],
)
def test_a_setting_that_cannot_be_read_is_one_line_in_every_command(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, arguments: Sequence[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert refused(arguments).startswith(f"error: {variable}: ")


@pytest.mark.parametrize("arguments", [("up",), ("demo",), ("status",), ("settings",)])
def test_a_setting_of_a_service_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> None:
    monkeypatch.setenv("BIOBRACKET_INGEST_MAX_DOCUMENTS", "zero")
    message = refused(arguments)
    assert message.startswith("error: BIOBRACKET_INGEST_MAX_DOCUMENTS: ")
    assert "Documents in flight per replica" in message
