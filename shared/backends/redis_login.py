"""How clients log in to Redis, and what it means when they are refused."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError

from shared.backends.credentials import client_context, secret
from shared.errors import StoreError
from shared.settings import Settings


class FilePassword(CredentialProvider):
    """A user, and a password that is read from its file for each connection: it may be changed while a client runs."""

    def __init__(self, user: str, path: str, variable: str) -> None:
        self._user = user
        self._path = path
        self._variable = variable

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Password, or user and password. Raises StoreError where the file holds none."""
        password = secret(self._path, self._variable, StoreError)
        return (self._user, password) if self._user else (password,)


def login(settings: Settings, *, cache: bool = False) -> tuple[str, dict[str, Any]]:
    """URL and options of a client, for ``redis`` or with ``cache`` for ``redis_cache``.

    StoreError where a file cannot be used, or settings contradict one another.
    """
    name = "redis_cache" if cache else "redis"
    url = _of_service(getattr(settings, name).get_secret_value(), settings)
    options: dict[str, Any] = {}
    if url.startswith("rediss://"):
        options = _encryption(settings)
    elif not cache and (settings.redis_ca is not None or settings.redis_certificate is not None):
        raise StoreError(
            "redis: its URL does not encrypt, but there are certificates; begin BIOBRACKET_REDIS with rediss://, or "
            "unset BIOBRACKET_REDIS_CA and BIOBRACKET_REDIS_CERTIFICATE",
            retryable=False,
        )
    path = settings.redis_cache_password_file if cache else settings.redis_password_file
    if path is not None:
        parts = urlsplit(url)
        user = unquote(parts.username or "")
        # redis-py refuses a user in the URL beside a provider.
        url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        provider = FilePassword(user, settings.of_service(path), f"BIOBRACKET_{name.upper()}_PASSWORD_FILE")
        provider.get_credentials()
        options["credential_provider"] = provider
    return url, options


def refusal(error: BaseException) -> StoreError | None:
    """What it means that the server refuses who is there, or what is wanted; None where it is another error."""
    for cause in _causes(error):
        said = str(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _wrong(
                f"redis_ca: the certificate of the server does not pass ({cause.verify_message.rstrip('.')}); name in "
                "BIOBRACKET_REDIS_CA the certificate of the CA that signed it, and in BIOBRACKET_REDIS a host that it "
                "is for"
            )
        if isinstance(cause, ssl.SSLEOFError):  # it stops, or it refuses a client that was already writing
            return StoreError(
                "redis: the server ended the encrypted connection; see that it runs and, if it asks for client "
                "certificates, set BIOBRACKET_REDIS_CERTIFICATE and BIOBRACKET_REDIS_KEY to one that it trusts",
                retryable=True,
            )
        if isinstance(cause, ssl.SSLError):
            if "CERTIFICATE" in (cause.reason or ""):
                return _wrong(
                    "redis_certificate: the server does not accept the client's certificate, or wants one; set "
                    "BIOBRACKET_REDIS_CERTIFICATE and BIOBRACKET_REDIS_KEY to one that it trusts"
                )
            return _wrong(
                "redis: the server does not speak TLS there; correct the port in BIOBRACKET_REDIS, or write redis://"
            )
        # A pipeline and a script change the class.
        if isinstance(cause, NoPermissionError) or "NOPERM" in said or "ACL failure" in said:
            return _wrong(
                f"redis: this user is not authorised for {_what(said)}; have an administrator of Redis add the rule, "
                "which `biobracket access redis` lists, or correct the user in BIOBRACKET_REDIS"
            )
        if isinstance(cause, AuthenticationError | AuthorizationError) or "WRONGPASS" in said or "NOAUTH" in said:
            return _wrong(
                "redis: the server does not accept user and password; correct them in BIOBRACKET_REDIS and "
                "BIOBRACKET_REDIS_PASSWORD_FILE"
            )
    return None


def _encryption(settings: Settings) -> dict[str, Any]:
    files = (settings.redis_ca, settings.redis_certificate, settings.redis_key)
    ca, certificate, key = (None if path is None else settings.of_service(path) for path in files)
    client_context("BIOBRACKET_REDIS", (ca, certificate, key), StoreError)  # redis-py tells no file
    return {
        "ssl_ca_certs": ca,
        "ssl_certfile": certificate,
        "ssl_keyfile": key,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }


def _of_service(url: str, settings: Settings) -> str:
    """The URL, in whose user ``{service}`` is replaced; a password is what it is."""
    scheme, separator, rest = url.partition("://")
    if "@" not in rest:
        return url
    user, mark, behind = re.split("([:@])", rest, maxsplit=1)
    return f"{scheme}{separator}{settings.of_service(user)}{mark}{behind}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _what(said: str) -> str:
    """What a server names: a command, which it quotes; keys it does not name."""
    if found := re.search(r"run the '([a-z|]{1,40})' command", said):
        return f"the command {found[1]}"
    return "a key" if "key" in said else "a command or key"


def _wrong(message: str) -> StoreError:
    return StoreError(message, retryable=False)
