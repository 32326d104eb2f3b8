"""The public keys that JSON Web Tokens are checked with: a JWKS from a file or from its issuer's URL."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jwt

from services.query.auth.callers import AuthenticationError, Unavailable
from shared.backends.watched_file import WatchedFile
from shared.runtime.logs import get_logger

logger = get_logger(__name__)

# An issuer that takes a key back wants it refused soon, and most ask to be asked no more often.
_REFRESH_S = 300.0
# A token with an unknown key may be of a new one. Anybody can send such tokens, so they cause a fetch only so often.
_UNKNOWN_S = 30.0
# An issuer that is away for a while should not shut callers out; for longer, a key it took back might be in use.
_KEEP_S = 3600.0
_TIMEOUT_S = 5.0


class Key(NamedTuple):
    """A public key, and the algorithm it is meant for, where its set names one."""

    key: Any
    algorithm: str | None


Keys = Mapping[str, Key]
"""By key id."""


class KeySource(Protocol):
    """Where public keys come from."""

    async def find(self, kid: str) -> Key | None:
        """The key with an id. Raises :class:`.callers.Unavailable` while no keys can be had."""


def public_keys(content: Any) -> Keys:
    """The keys of a JWKS that tokens can be signed by: public, with an id, not for encryption.

    A symmetric key is left out: whoever can read the set could sign with it. Raises ValueError where none is left.
    """
    entries = content.get("keys") if isinstance(content, dict) else None
    found: dict[str, Key] = {}
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        kid, algorithm = entry.get("kid"), entry.get("alg")
        if not isinstance(kid, str) or not kid or entry.get("use", "sig") != "sig" or "d" in entry:
            continue
        try:
            key = jwt.PyJWK(entry).key
        except jwt.PyJWTError:  # one that cannot be used does no harm to the others
            continue
        found[kid] = Key(key, algorithm if isinstance(algorithm, str) else None)
    if not found:
        raise ValueError("holds no public key with a key id (kid) for signatures")
    return found


class FileKeys:
    """Keys of a file, taken up when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`AuthenticationError` where the file is none."""
        self._file = WatchedFile(path, lambda content: public_keys(json.loads(content)))
        try:
            self._file.get()
        except (OSError, ValueError, RecursionError) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            raise AuthenticationError(
                f"BIOBRACKET_QUERY_JWKS: {path} cannot be used ({said}); name a JWKS file, or its https URL"
            ) from None

    async def find(self, kid: str) -> Key | None:
        try:
            return self._file.get().get(kid)
        except (OSError, ValueError, RecursionError):
            raise Unavailable("jwks_unreadable") from None


class UrlKeys:
    """Keys of an https URL, fetched at the first use, every five minutes, and for an unknown id twice a minute at most.

    While the URL does not answer, the keys it had count for an hour.
    """

    def __init__(self, url: str, ca: Path | None, now: Callable[[], float] = time.monotonic) -> None:
        """``ca``: certificates to trust in place of the system's. Raises :class:`AuthenticationError` if it is none."""
        self._now = now
        try:
            context = ssl.create_default_context(cafile=ca)
        except (OSError, ssl.SSLError):
            raise AuthenticationError(
                f"BIOBRACKET_QUERY_JWT_CA: {ca} holds no certificates; name a file of them in PEM"
            ) from None
        # As a client that follows no redirect; when to fetch is decided here, as its own cache has no answer to a URL
        # that is away: every token would wait for it.
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=_TIMEOUT_S, ssl_context=context)
        self._keys: Keys = {}
        self._tried: float | None = None
        self._fetched = 0.0
        self._lock = asyncio.Lock()

    async def find(self, kid: str) -> Key | None:
        if self._due(kid):
            async with self._lock:
                if self._due(kid):
                    await self._fetch()
        if not self._keys:
            raise Unavailable("jwks_unavailable")
        return self._keys.get(kid)

    def _due(self, kid: str) -> bool:
        wait = _REFRESH_S if kid in self._keys else _UNKNOWN_S
        return self._tried is None or self._now() - self._tried >= wait

    async def _fetch(self) -> None:
        try:
            self._keys = public_keys(await asyncio.to_thread(self._client.fetch_data))
            self._fetched = self._now()
        except (jwt.PyJWTError, OSError, ValueError, RecursionError) as error:
            logger.warning("jwks_failed", error=type(error).__name__)
            if self._now() - self._fetched >= _KEEP_S:
                self._keys = {}
        finally:
            self._tried = self._now()
