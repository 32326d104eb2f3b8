from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import redis

from services.embedded.servers import Valkey
from shared.backends.result_store import ResultStore
from shared.backends.vault import vault
from shared.messages import Extraction
from shared.settings import Settings
from tests.support.cli import call, failed


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, valkey: Valkey) -> Path:
    file = tmp_path / "keys.json"
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    monkeypatch.setenv("BIOBRACKET_ENCRYPTION_KEYS", str(file))
    monkeypatch.setenv("BIOBRACKET_REDIS", valkey.url)
    monkeypatch.setenv("BIOBRACKET_DATA", str(tmp_path))
    return file


def test_a_key_takes_over_from_another(path: Path) -> None:
    assert "k1" in call("encryption", "create").output
    with closing(ResultStore.from_settings(Settings())) as store:
        one = Extraction(document_id="d", text_sha256="", lang="en", types=(), entities=(), model_revision="r")
        store.put(one)
        assert "k2" in call("encryption", "add").output
        assert call("encryption", "use", "k2").exit_code == 0
        assert "1 values in Redis" in failed(call("encryption", "remove", "k1"))
        rotated = call("encryption", "rotate")
        assert (rotated.exit_code, rotated.stdout) == (
            0,
            "1 values sealed under the current key, 0 were already, 0 cannot be opened\n",
        )
        assert call("encryption", "remove", "k1").exit_code == 0
        shown = call("encryption", "list").stdout
        assert shown.splitlines() == ["k2  current", f"names: fingerprint {vault(Settings()).fingerprint}"]
        assert store.get("d") == one
        with redis.Redis.from_url(Settings().redis.get_secret_value()) as client:
            (key,) = client.scan_iter(match="bb:{??}:d:*")
            client.hset(key, "json", client.hget(key, "json") + b"x")
        assert call("encryption", "use", "k2").exit_code == 0
        assert call("encryption", "rotate").exit_code == 0  # what is under the current key already is not opened
    assert not [word for word in path.read_text().split('"') if len(word) == 64 and word in shown]


def test_what_cannot_be_done_names_the_remedy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "BIOBRACKET_ENCRYPTION_KEYS" in failed(call("encryption", "list"))
    call("encryption", "create")
    assert "is there already" in failed(call("encryption", "create"))
    assert "the file has k1" in failed(call("encryption", "use", "k9"))
    assert "current key" in failed(call("encryption", "remove", "k1"))
    path.write_text("{")
    assert "JSON" in failed(call("encryption", "list"))
    monkeypatch.delenv("BIOBRACKET_ENCRYPTION_KEYS")
    assert "BIOBRACKET_ENCRYPTION_KEYS" in failed(call("encryption", "rotate"))
