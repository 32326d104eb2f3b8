"""The HTTP client of commands: address, certificates and credential by the settings, never by an argument."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from services.cli.console import fail

if TYPE_CHECKING:
    import httpx

    from shared.settings import Settings


def http_client(settings: Settings) -> httpx.Client:
    """A client of the server that the settings name; ends the command where it cannot be made."""
    import httpx

    from services.embedded.http_server import url
    from services.query.exposure import is_loopback

    address = settings.http_url or url(settings)
    headers = {}
    if token := _token(settings):
        parts = urlsplit(address)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            fail("http_url: the token would travel unencrypted; set BIOBRACKET_HTTP_URL to an https:// address")
        headers["Authorization"] = f"Bearer {token}"
    verify: ssl.SSLContext | bool = True
    if settings.http_ca is not None:
        try:
            verify = ssl.create_default_context(cafile=settings.http_ca)
        except OSError:
            fail(f"http_ca: {settings.http_ca} holds no certificates; name a PEM file of them by BIOBRACKET_HTTP_CA")
    # No timeout: the server has one. `trust_env`: no proxy must come between, or see the text.
    return httpx.Client(base_url=address, headers=headers, verify=verify, timeout=None, trust_env=False)  # noqa: S113


def unreachable(address: str, error: httpx.HTTPError) -> str:
    """What to do about a request that got no answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"http: the certificate of {address} is not trusted ({cause.verify_message}); set BIOBRACKET_HTTP_CA "
                "to a file with that of its CA, and BIOBRACKET_HTTP_URL to a name that the certificate has"
            )
        cause = cause.__cause__ or cause.__context__
    return (
        f"http: nothing answers at {address}; start it with `biobracket up`, or set BIOBRACKET_HTTP_URL to the address "
        "of a server that runs"
    )


def _token(settings: Settings) -> str:
    token = settings.token.get_secret_value().strip()
    if settings.token_file is None:
        return _printable(token, "BIOBRACKET_TOKEN")
    if token:
        fail("token: BIOBRACKET_TOKEN and BIOBRACKET_TOKEN_FILE are both set; unset one")
    try:
        return _printable(settings.token_file.read_text("ascii").strip(), "BIOBRACKET_TOKEN_FILE")
    except UnicodeDecodeError:
        return _printable("\0", "BIOBRACKET_TOKEN_FILE")
    except OSError as error:
        fail(f"token_file: {settings.token_file} cannot be read ({error.strerror}); correct BIOBRACKET_TOKEN_FILE")


def _printable(token: str, variable: str) -> str:
    if not (token.isascii() and token.isprintable()) or " " in token:
        fail(f"{variable}: is no API key or JSON Web Token, which is one word of ASCII characters; correct it")
    return token
