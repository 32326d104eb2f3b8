"""The credentials that are accepted, as the settings have them."""

from __future__ import annotations

from pathlib import Path

from services.query.auth.callers import Caller, Rejected
from services.query.auth.jwks import FileKeys, KeySource, UrlKeys
from services.query.auth.key_file import PREFIX, KeyRing
from services.query.auth.tokens import TokenVerifier
from services.query.config import QueryConfig


class Authentication:
    """Checks credentials: API keys, JSON Web Tokens, or both."""

    def __init__(self, keys: KeyRing | None, tokens: TokenVerifier | None) -> None:
        self._keys = keys
        self._tokens = tokens

    @classmethod
    def from_config(cls, config: QueryConfig) -> Authentication | None:
        """None where no authentication is configured.

        Raises :class:`.callers.AuthenticationError` where a file that the settings name cannot be used.
        """
        keys = KeyRing(config.api_keys) if config.api_keys else None
        tokens = None
        if config.jwks:
            remote = config.jwks.startswith("https://")
            source: KeySource = UrlKeys(config.jwks, config.jwt_ca) if remote else FileKeys(Path(config.jwks))
            tokens = TokenVerifier(
                source,
                issuer=config.jwt_issuer,
                audience=config.jwt_audience,
                algorithms=config.jwt_algorithms,
                leeway_s=config.jwt_leeway_s,
            )
        return cls(keys, tokens) if keys or tokens else None

    async def check(self, credential: str) -> Caller:
        """Who a credential is of. Raises :class:`.callers.Rejected` and :class:`.callers.Unavailable`."""
        if credential.startswith(PREFIX):
            if self._keys is None:
                raise Rejected("no_keys", "holds an API key, which are not accepted here")
            return self._keys.check(credential)
        if self._tokens is None:
            raise Rejected("no_tokens", "holds no API key")
        return await self._tokens.check(credential)
