"""`biobracket` commands in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from services.cli import cli

SECRET = "zq17"


def call(*arguments: str, given: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=given)


def failed(result: Result) -> str:
    """What a command that failed in order says."""
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert SECRET not in result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message
