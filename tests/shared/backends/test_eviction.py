from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from shared.backends.eviction import refuse_eviction
from shared.errors import StoreError
from shared.settings import Settings
from tests.support.servers import Target


@pytest.fixture
def limited(target: Target) -> Iterator[Target]:
    target.everywhere("CONFIG", "SET", "maxmemory", "100mb")
    yield target
    target.everywhere("CONFIG", "SET", "maxmemory", "0")
    target.everywhere("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    ("policy", "ttl", "refused"),
    [
        ("noeviction", 0, False),
        ("noeviction", 60, False),
        ("volatile-lru", 0, False),  # segments go, results stay
        ("volatile-lru", 60, True),
        ("volatile-ttl", 60, True),
        ("allkeys-lru", 0, True),
        ("allkeys-random", 60, True),
    ],
)
def test_a_server_that_would_evict_results_is_refused(limited: Target, policy: str, ttl: int, refused: bool) -> None:
    limited.everywhere("CONFIG", "SET", "maxmemory-policy", policy)
    settings = limited.settings.model_copy(update={"result_ttl": ttl})
    if not refused:
        assert refuse_eviction(settings)
        return
    with pytest.raises(StoreError, match="noeviction") as caught:
        refuse_eviction(settings)
    assert not caught.value.retryable


def test_without_a_limit_nothing_is_evicted(target: Target) -> None:
    target.everywhere("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        assert refuse_eviction(target.settings)
    finally:
        target.everywhere("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_a_server_that_does_not_tell_is_unknown(target: Target) -> None:
    if target.settings.redis_cluster:
        pytest.skip("users are kept on each node")
    name, password = "teller", "secret-word"
    target.client.execute_command("ACL", "SETUSER", name, "on", f">{password}", "~*", "+@all", "-config")
    place = target.client.get_connection_kwargs()
    url = f"redis://{name}:{password}@{place['host']}:{place['port']}"
    assert not refuse_eviction(Settings(redis=SecretStr(url)))
    target.client.execute_command("ACL", "DELUSER", name)


def test_no_server_can_be_tried_again() -> None:
    with pytest.raises(StoreError) as caught:
        refuse_eviction(Settings(redis=SecretStr("redis://127.0.0.1:1/0")))
    assert caught.value.retryable
