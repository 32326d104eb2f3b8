"""The ``biobracket`` command."""

from services.cli.stream import cli, main

__all__ = ["cli", "main"]
