from __future__ import annotations

import pytest

from services.cli.console import out
from services.cli.embedded_runtime import ray_silenced
from tests.support.cli import SECRET


def test_only_the_commands_own_output_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with ray_silenced():
        print(SECRET)
        out.print("documents 1")
    out.print("stopped")
    printed = capfd.readouterr().out
    assert printed.split("\n") == ["documents 1", "stopped", ""]
