"""Servers for the tests of both stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.embedded.servers import Valkey
from shared.backends import vault
from tests.support import servers
from tests.support.certificates import Authority
from tests.support.redis_server import RedisServer, Unavailable
from tests.support.secured import SecureRedis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis itself; tests that need it are skipped where it is not installed."""
    try:
        server = RedisServer(tmp_path_factory.mktemp("redis"))
    except Unavailable as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(valkey: Valkey) -> Valkey:
    return valkey


@pytest.fixture(scope="session", params=["redis", "valkey", "encrypted", "cluster", "secured"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Target]:
    if request.param == "secured":
        server: SecureRedis = request.getfixturevalue("secure_redis")
        found = servers.Target(server.url, cluster=False)
        # The user has the rules of all services together, and no others.
        found.settings = server.settings("contract", tmp_path_factory.mktemp("secured"))
        yield found
        found.client.close()
        return
    if request.param != "cluster":
        keys = None
        if request.param == "encrypted":
            keys = tmp_path_factory.mktemp("keys") / "keys.json"
            vault.create(keys)
        server = request.getfixturevalue(f"{'redis' if request.param == 'redis' else 'valkey'}_server")
        found = servers.Target(server.url, cluster=False, keys=keys)
        yield found
        found.client.close()
        return
    nodes = [servers.node(tmp_path_factory.mktemp(f"node{n}")) for n in range(3)]
    try:
        servers.join(nodes)
        found = servers.Target(nodes[0].url, cluster=True)
        yield found
        found.client.close()
    finally:
        for node in nodes:
            node.stop()


@pytest.fixture(scope="session")
def secure_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureRedis]:
    """Redis with TLS and users that have no more than the rules of access.py."""
    yield from _secure(tmp_path_factory, certificates=False)


@pytest.fixture(scope="session")
def secure_redis_mtls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureRedis]:
    """As ``secure_redis``, but it asks for client certificates."""
    yield from _secure(tmp_path_factory, certificates=True)


def _secure(folders: pytest.TempPathFactory, *, certificates: bool) -> Iterator[SecureRedis]:
    try:
        server = SecureRedis(
            folders.mktemp("secure-redis"), Authority(folders.mktemp("authority")), certificates=certificates
        )
    except Unavailable as missing:
        pytest.skip(str(missing))
    with server:
        yield server
