from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Scan
from shared.messages import Extraction
from shared.settings import Settings
from tests.support.cli import call, failed


def in_store(settings: Settings, document_id: str) -> bool:
    with closing(ResultStore.from_settings(settings)) as store:
        return store.get(document_id) is not None


def tombstones(settings: Settings) -> int:
    with closing(Scan(settings, settings.topic_documents)) as scan:
        return sum(record.value is None for records in scan.read() for record in records)


def test_forget_by_id_and_again(stored: Extraction, servers: Settings) -> None:
    said = call("forget", "病历/1", "--dry-run")
    assert (said.exit_code, said.stdout) == (0, "1 documents (1 with a result) to erase\n")
    assert in_store(servers, "病历/1")
    assert tombstones(servers) == 0
    said = call("forget", "病历/1", "never there")
    assert (said.exit_code, said.stdout) == (0, "2 documents (1 with a result) erased\n")
    assert not in_store(servers, "病历/1")
    assert tombstones(servers) == 2
    # The broker of embedded mode tells nothing of retention; what is certain is said all the same.
    assert f"{servers.topic_documents} (not told by the broker)" in said.stderr
    said = call("forget", "病历/1")
    assert (said.exit_code, said.stdout) == (0, "1 documents (0 with a result) erased\n")


def test_an_erasure_is_in_the_audit_trail(
    stored: Extraction, servers: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIOBRACKET_AUDIT", str(tmp_path / "trail"))
    assert call("forget", "病历/1", "--dry-run").exit_code == 0
    assert call("forget", "病历/1").exit_code == 0
    (file,) = (tmp_path / "trail").iterdir()
    entry, end = map(json.loads, file.read_bytes().splitlines())
    assert (entry["action"], entry["outcome"], end["action"]) == ("forget", "erased", "end")
    assert entry["who"].startswith("command:")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BIOBRACKET_AUDIT", str(tmp_path / "file"))
    assert "BIOBRACKET_AUDIT" in failed(call("forget", "病历/1"))


def test_a_choice_is_asked_about(stored: Extraction, servers: Settings) -> None:
    with closing(ResultStore.from_settings(servers)) as store:
        store.put(stored.model_copy(update={"document_id": "other", "metadata": {"ward": 7, "year": "2019"}}))
    said = call("forget", "--metadata", "ward=7", "--metadata", "year=2019", given=b"n\n")
    assert said.exit_code == 1
    assert "erase 1 documents (1 with a result)?" in said.output
    assert in_store(servers, "other")
    assert call("forget", "--metadata", "ward=8", "--yes").stdout == "0 documents (0 with a result) erased\n"
    assert call("forget", "--metadata", "ward=7", "--yes").stdout == "1 documents (1 with a result) erased\n"
    assert (in_store(servers, "other"), in_store(servers, "病历/1")) == (False, True)
    said = call("forget", "--before", "1d", "--yes")
    assert said.exit_code == 0
    assert "1 results of an earlier version of biobracket have no time" in said.stderr


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), "--before"),
        (("a", "--before", "1d"), "--before"),
        (("x" * 513,), "id"),
        (("",), "id"),
        (("--metadata", "ward"), "metadata"),
        (("--metadata", "=7"), "metadata"),
        (("--metadata", "a=1", "--metadata", "a=2"), "metadata"),
        (("--before", "yesterday"), "before"),
        (("a",), "BIOBRACKET_KAFKA"),
    ],
)
def test_what_is_wrong_is_named(arguments: tuple[str, ...], names: str) -> None:
    assert names in failed(call("forget", *arguments))
