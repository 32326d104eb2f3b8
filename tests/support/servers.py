"""Servers that results and feedback are kept on: one of Valkey, and a cluster of three."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import redis
from pydantic import SecretStr

from services.embedded.servers import Valkey
from shared.backends import agreement
from shared.settings import Settings


class Target:
    """A server or cluster under test."""

    def __init__(self, url: str, *, cluster: bool, keys: Path | None = None) -> None:
        self.settings = Settings(redis=SecretStr(url), redis_cluster=cluster, encryption_keys=keys)
        self.client: Any = (redis.RedisCluster if cluster else redis.Redis).from_url(url)

    def everywhere(self, *command: str) -> None:
        if self.settings.redis_cluster:
            self.client.execute_command(*command, target_nodes=redis.RedisCluster.PRIMARIES)
        else:
            self.client.execute_command(*command)

    def keys(self) -> list[bytes]:
        """All keys but the one that says how they are made."""
        return [key for key in self.client.scan_iter() if key != agreement.KEY.encode()]


def node(folder: Path) -> Valkey:
    server = Valkey(folder, cluster=True)
    server.password = "of-the-cluster"  # one for all nodes
    server.start()
    return server


def join(nodes: list[Valkey]) -> None:
    clients = [redis.Redis.from_url(node.url) for node in nodes]
    bounds = [16384 * n // len(nodes) for n in range(len(nodes) + 1)]
    for client, start, end in zip(clients, bounds, bounds[1:], strict=False):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, end - 1)
    for node in nodes[1:]:
        bus = redis.Redis.from_url(node.url).config_get("cluster-port")["cluster-port"]
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
    deadline = time.monotonic() + 120
    while not all(_joined(client, len(nodes)) for client in clients):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for client in clients:
        client.close()


def _joined(client: Any, size: int) -> bool:
    told = client.execute_command("CLUSTER", "INFO").decode().split()
    return "cluster_state:ok" in told and f"cluster_size:{size}" in told
