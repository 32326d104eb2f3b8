"""All clients of a store use the same keys, or none: else some would not find what others wrote, or write it plain.

bb:keys    fingerprint of the key of names, or `plain`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from redis.exceptions import NoPermissionError

from shared.backends.vault import PLAIN, SealError, Vault
from shared.errors import StoreError

KEY = "bb:keys"


class KeysRefused(StoreError):
    """The keys of this process are not those of the store."""

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message, retryable)


class Agreement:
    """Whether the keys of this process are those of a store: noted by the first client, checked by the others."""

    def __init__(self, client: Any, vault: Vault, samples: Callable[[], Iterator[tuple[bytes, str]]]) -> None:
        """``samples``: values of the store and their places, for one that was filled before keys were noted."""
        self._client = client
        self._vault = vault
        self._samples = samples
        self._made = False

    def check(self) -> None:
        """:class:`KeysRefused` where the keys differ; raises what the Redis client does. Asks the store once.

        A user who may not look for values leaves it to others to note their keys.
        """
        if self._made:
            return
        own = self._vault.fingerprint
        told = self._client.get(KEY)
        if told is None:
            try:
                self._look()
            except NoPermissionError:
                return
            self._client.set(KEY, own, nx=True)
            told = self._client.get(KEY)
        # Emptied meanwhile it is None: then the next to come notes its own.
        if told is not None and told.decode() != own:
            raise _refusal(told.decode("ascii", "replace"), own)
        self._made = True

    def check_at_start(self) -> None:
        """As above; what else is wrong with the store is for its users to wait for."""
        try:
            self.check()
        except KeysRefused:
            raise
        except Exception:  # noqa: S110 - it shows with the first use
            pass

    def _look(self) -> None:
        for value, place in self._samples():
            try:
                self._vault.open(value, place)
            except SealError as error:
                raise KeysRefused(str(error)) from None


def _refusal(told: str, own: str) -> KeysRefused:
    setting = "BIOBRACKET_ENCRYPTION_KEYS"
    if told == PLAIN.fingerprint:
        return KeysRefused(
            f"redis: what is stored is not encrypted, but {setting} is set; empty the database, start again and run "
            "`biobracket rebuild`, or unset it"
        )
    if own == PLAIN.fingerprint:
        return KeysRefused(f"redis: what is stored is encrypted; set {setting} to the file of its keys")
    return KeysRefused(
        f"redis: what is stored was named by another key (fingerprint {told}, not {own}); set {setting} to its file"
    )
