from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.query.auth.callers import Rejected
from services.query.auth.key_file import KeyRing
from tests.support.cli import call, failed


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    file = tmp_path / "keys.json"
    monkeypatch.setenv("BIOBRACKET_QUERY_API_KEYS", str(file))
    return file


def test_a_key_is_printed_once_works_and_is_revoked(path: Path) -> None:
    made = call("keys", "create", "ward-3", "--scopes", "extract, read")
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert key not in made.stderr
    ring = KeyRing(path)
    assert ring.check(key).scopes == {"read", "extract"}
    shown = call("keys", "list")
    identifier = key.split("_")[1]
    for word in (identifier, "ward-3", "read,extract", "valid"):
        assert word in shown.stdout
    (row,) = json.loads(call("keys", "list", "--json").stdout)
    assert not {"salt", "sha256"} & row.keys()
    for text in (shown.output, json.dumps(row)):
        assert key.split("_", 2)[2] not in text
    assert identifier in call("keys", "revoke", identifier).stdout
    assert call("keys", "revoke", identifier).exit_code == 0
    with pytest.raises(Rejected):
        ring.check(key)
    assert "revoked" in call("keys", "list").stdout


def test_a_key_expires_after_a_year_unless_told_otherwise(path: Path) -> None:
    call("keys", "create", "a", "--scopes", "read")
    call("keys", "create", "b", "--scopes", "read", "--days", "0")
    first, second = json.loads(call("keys", "list", "--json").stdout)
    assert first["expires"] > first["created"]
    assert second["expires"] is None


@pytest.mark.parametrize("scopes", ["", ",", "read,write", "READ"])
def test_unknown_scopes(path: Path, scopes: str) -> None:
    assert "read, extract, feedback, admin" in failed(call("keys", "create", "a", "--scopes", scopes))
    assert not path.exists()


def test_what_cannot_be_done_names_the_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "biobracket keys create" in failed(call("keys", "list"))
    call("keys", "create", "a", "--scopes", "read")
    assert "biobracket keys list" in failed(call("keys", "revoke", "0" * 12))
    assert "name:" in failed(call("keys", "create", "患者", "--scopes", "read"))
    monkeypatch.setenv("BIOBRACKET_QUERY_API_KEYS", "/proc/keys/api.json")
    assert "BIOBRACKET_QUERY_API_KEYS" in failed(call("keys", "create", "a", "--scopes", "read"))
    monkeypatch.delenv("BIOBRACKET_QUERY_API_KEYS")
    assert "BIOBRACKET_QUERY_API_KEYS" in failed(call("keys", "list"))
