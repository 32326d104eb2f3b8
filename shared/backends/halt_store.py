"""Whether a consumer group has been halted, in Redis: all its replicas stop, also over a restart, until it is lifted.

One key a group, `bb:halt:<group>`, whose value says why.
"""

from __future__ import annotations

from typing import Any

from shared.backends.result_store import connect, translated
from shared.settings import Settings


class HaltStore:
    """The halt of one consumer group. Thread-safe; methods may block on the network and raise :class:`StoreError`."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._client: Any = connect(settings)
        self._key = f"bb:halt:{group}"

    def halt(self, why: str) -> None:
        """Halts the group. What is there already stays: the first cause is the one to look for."""
        with translated():
            self._client.set(self._key, why, nx=True)

    def halted(self) -> str | None:
        """Why the group is halted; None if it is not."""
        with translated():
            why = self._client.get(self._key)
        return None if why is None else why.decode()

    def lift(self) -> bool:
        """Lets the group go on; whether it was halted."""
        with translated():
            return bool(self._client.delete(self._key))

    def close(self) -> None:
        """Closes the connections."""
        with translated():
            self._client.close()
