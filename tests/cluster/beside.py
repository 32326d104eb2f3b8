"""Kafka and Redis beside the cluster: on this machine, at the address where pods reach it."""

from __future__ import annotations

from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from pydantic import SecretStr

from shared.settings import Settings
from tests.cluster.kubernetes import HOST
from tests.support.kafka import Kafka
from tests.support.redis_server import RedisServer

# As k8s/overlays/test has them.
_KAFKA, _REDIS = 9092, 6379
PASSWORD = "test-only-results"


class HostKafka(Kafka):
    """At an address of its own, since clients are told it."""

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def _answers(self) -> bool:
        """Asked at its own address; a broker of the product's own is asked on loopback first."""
        try:
            KafkaAdminClient(bootstrap_servers=self.address, bootstrap_timeout_ms=2000).close()
        except (KafkaError, OSError):
            return False
        return True


class HostRedis(RedisServer):
    """With the password of the manifests."""

    def __init__(self, data: Path) -> None:
        super().__init__(data, _REDIS)
        self.password = PASSWORD

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def _command(self) -> list[str]:
        command = super()._command()
        with Path(command[-1]).open("a") as lines:
            lines.write(f"bind {HOST}\n")  # the last one counts
        return command


def servers(folder: Path) -> tuple[HostKafka, HostRedis]:
    """Not yet started. :class:`tests.support.kafka.Unavailable` and that of Redis where one cannot be had."""
    return HostKafka(folder / "kafka", _KAFKA), HostRedis(folder / "redis")


def settings(kafka: HostKafka, redis: HostRedis) -> Settings:
    """Of a client on this machine."""
    return Settings(kafka=kafka.address, redis=SecretStr(redis.url), partitions=4)
