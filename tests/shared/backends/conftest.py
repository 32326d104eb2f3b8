"""Servers for the tests of both stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import servers


@pytest.fixture(scope="session", params=["server", "cluster"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Target]:
    if request.param == "server":
        found = servers.Target(request.getfixturevalue("valkey").url, cluster=False)
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
