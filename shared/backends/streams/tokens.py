"""Tokens for SASL OAUTHBEARER: of a file that something else renews, or fetched by the client credentials grant.

RFC 6749, section 4.4. kafka-python asks for a token at each connection, and again before the broker ends a session
(KIP-368).
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from functools import lru_cache

import httpx
from kafka.net.sasl.oauth import AbstractTokenProvider  # type: ignore[import-untyped]

from shared.backends.credentials import client_context, secret
from shared.errors import StreamError
from shared.settings import Settings

# The network thread of a client waits for it, and sends no heartbeats.
_TIMEOUT_S = 3.0
# A token is fetched anew when this share of its time has passed, and used till its end where that fails.
_FRESH = 0.8
_DEFAULT_S = 300.0


class FileTokens(AbstractTokenProvider):  # type: ignore[misc]
    """The token of a file, read each time."""

    def __init__(self, path: str) -> None:
        self._path = path

    def token(self) -> str:
        """Raises StreamError where the file holds none."""
        return secret(self._path, "BIOBRACKET_KAFKA_TOKEN_FILE", StreamError)


class FetchedTokens(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of an endpoint. Thread-safe."""

    def __init__(
        self,
        url: str,
        client: Callable[[], tuple[str, str]],
        scope: str,
        context: ssl.SSLContext,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``client`` tells id and secret of the client, and may raise StreamError."""
        self._url = url
        self._client = client
        self._scope = scope
        self._context = context
        self._now = now
        self._lock = threading.Lock()
        self._token = ""
        self._fresh_until = self._valid_until = 0.0

    def token(self) -> str:
        """Raises StreamError where none can be had and the one before has expired."""
        with self._lock:
            if self._now() >= self._fresh_until:
                try:
                    self._fetch()
                except StreamError:
                    if self._now() >= self._valid_until:
                        raise
            return self._token

    def _fetch(self) -> None:
        form = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        asked = self._now()
        try:
            with httpx.Client(verify=self._context, timeout=_TIMEOUT_S, trust_env=False) as client:
                answer = client.post(self._url, data=form, auth=self._client())
        except (httpx.HTTPError, OSError) as error:
            raise _no_token(_cause(error), retryable=True) from None
        refused = answer.status_code in (400, 401, 403)
        if refused:
            raise StreamError(
                f"kafka_token_url: it refuses the client (status {answer.status_code}); correct BIOBRACKET_KAFKA_USER, "
                "BIOBRACKET_KAFKA_PASSWORD or its file, and BIOBRACKET_KAFKA_TOKEN_SCOPE",
                retryable=False,
            )
        if answer.status_code != 200:  # redirects are not followed: they would take the secret along
            raise _no_token(f"status {answer.status_code}", retryable=True)
        try:
            fields = answer.json()
            token, seconds = fields["access_token"], float(fields.get("expires_in", _DEFAULT_S))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise _no_token("no JSON object with an access_token", retryable=True) from None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise _no_token("an access_token that is none", retryable=True)
        self._token = token
        self._fresh_until, self._valid_until = asked + _FRESH * seconds, asked + seconds


def tokens(settings: Settings) -> AbstractTokenProvider:
    """What the settings name, the same for all clients of a process. Raises StreamError where they name none or both.

    A token is had at once, so that what is wrong is told here: a client would only try again.
    """
    if (settings.kafka_token_file is None) != bool(settings.kafka_token_url):
        raise StreamError(
            "kafka_token_file: OAUTHBEARER needs tokens; set either BIOBRACKET_KAFKA_TOKEN_FILE or "
            "BIOBRACKET_KAFKA_TOKEN_URL",
            retryable=False,
        )
    if settings.kafka_token_file is not None:
        found: FileTokens | FetchedTokens = FileTokens(settings.of_service(settings.kafka_token_file))
    else:
        found = _fetched(
            settings.kafka_token_url,
            settings.of_service(settings.kafka_user),
            None if settings.kafka_password_file is None else settings.of_service(settings.kafka_password_file),
            settings.kafka_password.get_secret_value(),
            settings.kafka_token_scope,
            None if settings.kafka_token_ca is None else str(settings.kafka_token_ca),
        )
    found.token()
    return found


@lru_cache(maxsize=8)
def _fetched(url: str, user: str, file: str | None, password: str, scope: str, ca: str | None) -> FetchedTokens:
    context = client_context("BIOBRACKET_KAFKA_TOKEN", (ca, None, None), StreamError)

    def client() -> tuple[str, str]:
        return user, password if file is None else secret(file, "BIOBRACKET_KAFKA_PASSWORD_FILE", StreamError)

    return FetchedTokens(url, client, scope, context)


def _cause(error: BaseException) -> str:
    """What went wrong on the way, without what was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate does not pass: {cause.verify_message}; see BIOBRACKET_KAFKA_TOKEN_CA"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _no_token(problem: str, *, retryable: bool) -> StreamError:
    return StreamError(
        f"kafka_token_url: no token ({problem}); see that BIOBRACKET_KAFKA_TOKEN_URL is the token endpoint of your "
        "identity provider, and that it runs",
        retryable=retryable,
    )
