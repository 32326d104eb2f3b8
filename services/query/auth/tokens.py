"""JSON Web Tokens: who a token is of, if it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jwt

from services.query.auth.callers import Caller, Rejected
from services.query.auth.jwks import KeySource
from services.query.auth.scopes import known

_WRONG = "holds a JSON Web Token that is not valid here"


class TokenVerifier:
    """Checks signature, issuer, audience and times of tokens.

    A token names its key (``kid``) and has ``iss``, ``aud``, ``sub`` and ``exp``. Its scopes are those of the claim
    ``scope``, words parted by spaces, or else ``scp``, the same or a list.
    """

    def __init__(
        self, keys: KeySource, *, issuer: str, audience: str, algorithms: Sequence[str], leeway_s: float
    ) -> None:
        """``algorithms``: those accepted; asymmetric ones, as the caller sees to."""
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._algorithms = frozenset(algorithms)
        self._leeway_s = leeway_s

    async def check(self, token: str) -> Caller:
        """Raises :class:`.callers.Rejected` and :class:`.callers.Unavailable`."""
        try:
            header = jwt.get_unverified_header(token)
        except Exception:  # whatever the library makes of it, it is no token
            raise Rejected("no_token", "is neither an API key nor a JSON Web Token") from None
        kid, algorithm = header.get("kid"), header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise Rejected("token_algorithm", "holds a JSON Web Token that is signed by an algorithm not accepted here")
        if not isinstance(kid, str):
            raise Rejected("token_without_kid", "holds a JSON Web Token without the key id `kid`")
        key = await self._keys.find(kid)
        if key is None or key.algorithm not in (None, algorithm):
            raise Rejected("token_key", _WRONG)
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.ExpiredSignatureError:  # raised once the signature is known to be right
            raise Rejected("expired_token", "holds a JSON Web Token that has expired") from None
        except Exception:  # as above; what is wrong is none of a stranger's business
            raise Rejected("invalid_token", _WRONG) from None
        if not claims["sub"]:
            raise Rejected("token_subject", _WRONG)
        return Caller("jwt", claims["sub"], _scopes(claims))


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    claim = claims.get("scope", claims.get("scp", ()))
    if isinstance(claim, str):
        return known(claim.split())
    return known(claim) if isinstance(claim, list) else frozenset()
