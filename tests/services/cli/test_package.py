"""The command as a whole."""

from __future__ import annotations

import re
import subprocess
import sys

from typer.testing import CliRunner

from services.cli import cli

COMMANDS = ("up", "demo", "produce", "get", "extract", "status", "settings")


def test_help_names_every_command() -> None:
    output = CliRunner().invoke(cli, ["--help"]).output
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", output)
        assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0


def test_help_needs_no_heavy_import() -> None:
    code = "import services.cli, sys; print([m for m in ('ray', 'torch', 'kafka', 'redis') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
