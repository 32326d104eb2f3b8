"""redis-server, as clusters run it, for the tests; Debian's package is called the same."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.embedded.servers import Valkey


class Unavailable(Exception):
    """There is no redis-server here."""


class RedisServer(Valkey):
    """Redis with a password; without ``durable`` it forgets everything when it dies."""

    name = "redis"

    def __init__(self, data: Path, port: int = 0, *, durable: bool = True) -> None:
        super().__init__(data, port)
        binary = shutil.which("redis-server")
        if binary is None:
            raise Unavailable("no redis-server: no Redis")
        self._binary = binary
        self.durable = durable

    def _command(self) -> list[str]:
        _, config = super()._command()
        if not self.durable:
            with Path(config).open("a") as lines:
                lines.write("appendonly no\n")
        return [self._binary, config]
