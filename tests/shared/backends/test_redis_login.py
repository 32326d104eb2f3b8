from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.backends.redis_login import login
from shared.backends.result_store import ResultStore
from shared.errors import StoreError
from tests.support.certificates import Authority
from tests.support.secured import SecureRedis


def ping(server: SecureRedis, folder: Path, service: str = "ingest", **others: Any) -> None:
    store = ResultStore.from_settings(server.settings(service, folder, **others))
    try:
        store.ping()
    finally:
        store.close()


def refused(server: SecureRedis, folder: Path, **others: Any) -> StoreError:
    with pytest.raises(StoreError) as failed:
        ping(server, folder, **others)
    said = str(failed.value)
    assert "\n" not in said
    assert "zq17" not in said
    return failed.value


def test_a_user_with_a_password_of_every_character(secure_redis: SecureRedis, tmp_path: Path) -> None:
    ping(secure_redis, tmp_path)


def test_a_changed_password_counts_for_the_next_connection(secure_redis: SecureRedis, tmp_path: Path) -> None:
    settings = secure_redis.settings("ingest", tmp_path)
    file = tmp_path / "redis-ingest"
    right = file.read_text()
    store = ResultStore.from_settings(settings)
    file.write_text("zq17")
    store.ping()  # by the connection that there is
    store._client.connection_pool.disconnect()
    with pytest.raises(StoreError, match="does not accept user and password") as failed:
        store.ping()
    assert not failed.value.retryable
    file.write_text(right)
    store.ping()
    store.close()


def test_what_keeps_a_client_out_is_told(secure_redis: SecureRedis, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").file
    for ca in (None, other):
        assert str(refused(secure_redis, tmp_path, redis_ca=ca)).startswith("redis_ca: the certificate of the server")
    missing = refused(secure_redis, tmp_path, redis_password_file=tmp_path / "none")
    assert str(missing).startswith("BIOBRACKET_REDIS_PASSWORD_FILE: ")
    plain = refused(secure_redis, tmp_path, redis="redis://ingest@127.0.0.1:1/0")
    assert "rediss://" in str(plain)


def test_a_client_certificate(secure_redis_mtls: SecureRedis, tmp_path: Path) -> None:
    certificate, key = secure_redis_mtls.authority.issue("client")
    ping(secure_redis_mtls, tmp_path, redis_certificate=certificate, redis_key=key)
    assert "BIOBRACKET_REDIS_CERTIFICATE" in str(refused(secure_redis_mtls, tmp_path))


def test_what_is_not_allowed_is_named(secure_redis: SecureRedis, tmp_path: Path) -> None:
    for service, call, what in (
        ("selection", lambda store: store.get("d"), "the command hget"),
        ("pipeline", lambda store: store.counts(), "the command hmget"),
        ("selection", lambda store: store.removals(), "a key"),
    ):
        store = ResultStore.from_settings(secure_redis.settings(service, tmp_path))
        with pytest.raises(StoreError, match=f"not authorised for {what}; .*biobracket access redis") as failed:
            call(store)
        assert not failed.value.retryable
        store.close()


def test_the_cache_has_a_password_of_its_own(secure_redis: SecureRedis, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    file.write_text("zq17")
    settings = secure_redis.settings(
        "pipeline", tmp_path, redis_cache="redis://c-{service}@store:6379/1", redis_cache_password_file=file
    )
    url, options = login(settings, cache=True)
    assert url == "redis://store:6379/1"
    assert set(options) == {"credential_provider"}
    assert options["credential_provider"].get_credentials() == ("c-pipeline", "zq17")
    assert "zq17" not in repr(settings)
