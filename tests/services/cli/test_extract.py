from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import SECRET, call, failed

pytestmark = pytest.mark.usefixtures("nothing_runs")


def test_without_a_running_application_the_remedy_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(f"{SECRET} asthma")
    assert "`biobracket up`" in failed(call("extract", str(file)))


def test_a_file_that_is_not_there() -> None:
    assert "nothing.txt" in failed(call("extract", "nothing.txt"))


def test_wrong_encoding_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("肺炎".encode("gb18030"))
    assert "iconv" in failed(call("extract", str(file)))
