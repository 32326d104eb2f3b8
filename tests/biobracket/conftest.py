from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from tests.support.http import World


class Served:
    """The HTTP application on a real server; ``refusals`` are answered first, as status and headers."""

    def __init__(self) -> None:
        self.world = World(feedback=None)
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.seen: list[dict[str, str]] = []
        config = uvicorn.Config(self._app, port=0, log_level="error", lifespan="off", interface="asgi3")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    async def _app(self, scope, receive, send) -> None:
        self.seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        if not self.refusals:
            await self.world.app(scope, receive, send)
            return
        status, headers = self.refusals.pop(0)
        given = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": given})
        await send({"type": "http.response.body", "body": b"busy"})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name in ("BIOBRACKET_TOKEN", "BIOBRACKET_TOKEN_FILE", "BIOBRACKET_HTTP_URL"):
        monkeypatch.delenv(name, raising=False)
    made = Served()
    made.start()
    yield made
    made.stop()
