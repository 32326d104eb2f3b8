"""TLS certificates of Ray Serve's HTTP proxy, taken up when their files change.

Serve gives its proxy certificate and key but loads them once. It also calls a function in the proxy's process before
the server starts, which ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names: :func:`reload_certificates`. That makes
uvicorn's TLS context one that asks, at each handshake, for the context of the files as they are.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any

import uvicorn.config

from shared.backends.watched_file import state_of
from shared.runtime.logs import get_logger

HOOK = "services.query.tls.reload_certificates"
"""Value of ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``."""

logger = get_logger(__name__)

MakeContext = Callable[..., ssl.SSLContext]


class Certificate:
    """The TLS context of a certificate and key file, made anew after either has changed.

    While the files do not fit or cannot be read, as between the writing of one and of the other, the last one that
    worked stays.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext], *files: str | os.PathLike[str]) -> None:
        """``make``: makes a context of the files; raises OSError, ``ssl.SSLError`` among them, where that fails."""
        self._make = make
        self._files = files
        self._seen = self._stat()
        self._context = make()

    def listening(self) -> ssl.SSLContext:
        """The context for a server's socket. It stays the same; each handshake is by the newest certificate."""
        context = self._make()
        context.sni_callback = self._choose
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, listening: ssl.SSLContext) -> None:
        connection.context = self.current()  # OpenSSL calls this whether or not the client names a host

    def current(self) -> ssl.SSLContext:
        """The context of the files as they are, or as they were when they last fitted."""
        seen = self._stat()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._make()
                logger.info("certificate_reloaded")
            except OSError as error:
                logger.error("certificate_unusable", error=type(error).__name__)
        return self._context

    def _stat(self) -> list[tuple[int, ...] | None]:
        found: list[tuple[int, ...] | None] = []
        for file in self._files:
            try:
                found.append(state_of(file))
            except OSError:
                found.append(None)
        return found


def reload_certificates() -> list[Any]:
    """Have uvicorn's TLS contexts in this process follow their files; returns the middlewares that Serve adds: none."""
    original: MakeContext = uvicorn.config.create_ssl_context

    def create(certfile: str, keyfile: str | None, *rest: Any, **others: Any) -> ssl.SSLContext:
        files = (certfile,) if keyfile is None else (certfile, keyfile)
        return Certificate(lambda: original(certfile, keyfile, *rest, **others), *files).listening()

    uvicorn.config.create_ssl_context = create  # type: ignore[assignment]
    return []
