from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import call, failed

pytestmark = pytest.mark.usefixtures("nothing_runs")


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"text": "zq17"}', b'{"id": "a", "text": "zq17"}\n{"id": "a", "text": "zq17"}']
)
def test_wrong_notes_of_the_demonstration(tmp_path: Path, content: bytes) -> None:
    notes = tmp_path / "notes.jsonl"
    notes.write_bytes(content)
    assert "notes" in failed(call("demo", "--notes", str(notes)))
