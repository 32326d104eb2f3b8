"""A model whose passes fail or wait."""

from __future__ import annotations

import threading


class FailingBody:
    """A model that fails when it is told to, or waits."""

    def __init__(self, body):
        self._body = body
        self.config, self.embedding, self.cache = body.config, body.embedding, body.cache
        self.error = None
        self.go = threading.Event()
        self.go.set()

    def __call__(self, *given):
        self.go.wait(30)
        if self.error is not None:
            raise self.error
        return self._body(*given)
