from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import call, failed

pytestmark = pytest.mark.usefixtures("nothing_runs")


def test_a_setting_that_no_replica_could_read_ends_it_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BIOBRACKET_GENERATION_MAX_QUEUED", "many")
    assert "BIOBRACKET_GENERATION_MAX_QUEUED" in failed(call("up"))
    assert not (tmp_path / "data").exists()
