"""The HTTP server of embedded mode: where it listens, its certificate, and that strangers are kept out."""

from __future__ import annotations

import random
import socket
import ssl
from pathlib import Path
from typing import Any

from services.query import exposure, tls
from services.query.config import QueryConfig
from shared.settings import Settings

# Where a free port is looked for. The proxy binds it seconds later: one of the ephemeral range (from 32,768 on) could
# have gone to any outgoing connection by then.
_PORTS = range(20_000, 32_000)
_TRIES = 50


class HttpServerError(Exception):
    """The HTTP server must not or cannot start; the message names the setting and the remedy."""


def url(settings: Settings) -> str:
    """The base URL of a server with these settings, for programs on its machine."""
    host = "127.0.0.1" if settings.http_host in ("0.0.0.0", "") else settings.http_host  # noqa: S104 - a comparison
    host = "::1" if host == "::" else host
    scheme = "http" if settings.http_certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.http_port}"


def check(settings: Settings) -> None:
    """Fail before anything starts where strangers could get in, or keys, certificates or tokens' keys are unusable."""
    from services.query.auth.authentication import Authentication
    from services.query.auth.callers import AuthenticationError

    config = QueryConfig()
    if problem := exposure.problem(settings.http_host, config):
        raise HttpServerError(problem)
    try:
        Authentication.from_config(config)
    except AuthenticationError as error:
        raise HttpServerError(str(error)) from None
    if settings.http_certificate is not None and settings.http_key is not None:
        try:
            # No password: a key that needs one would ask for it on the terminal.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.http_certificate, settings.http_key, b"")
        except OSError as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            raise HttpServerError(
                f"http_certificate: certificate and key cannot be used together ({reason}); let "
                "BIOBRACKET_HTTP_CERTIFICATE and BIOBRACKET_HTTP_KEY name PEM files that fit, without a password"
            ) from None


def environment(settings: Settings) -> dict[str, str]:
    """What replicas and Serve's proxy read: the files of authentication, TLS and audit, as found from any folder."""
    config = QueryConfig()
    files = {
        "HTTP_CERTIFICATE": settings.http_certificate,
        "HTTP_KEY": settings.http_key,
        "QUERY_API_KEYS": config.api_keys,
        "QUERY_JWKS": Path(config.jwks) if config.jwks and "://" not in config.jwks else None,
        "QUERY_JWT_CA": config.jwt_ca,
        "AUDIT": settings.audit,
    }
    # Links are kept: Kubernetes renews mounted secrets by changing one.
    values = {f"BIOBRACKET_{name}": str(file.absolute()) for name, file in files.items() if file is not None}
    if settings.http_certificate is not None:
        values["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = tls.HOOK
    return values


def options(settings: Settings) -> dict[str, Any]:
    """Serve's ``http_options``."""
    listens: dict[str, Any] = {"host": settings.http_host, "port": settings.http_port}
    if settings.http_certificate is not None and settings.http_key is not None:
        # Serve looks at the certificate alone unless the key is there first.
        listens |= {
            "ssl_keyfile": str(settings.http_key.absolute()),
            "ssl_certfile": str(settings.http_certificate.absolute()),
        }
    return listens


def trust(settings: Settings) -> ssl.SSLContext | bool:
    """What a probe of our own server trusts: its certificate, whatever the name in it and the CA."""
    if settings.http_certificate is None:
        return True
    context = ssl.create_default_context(cafile=settings.http_certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def port(settings: Settings) -> int:
    """The port to listen on: the one given, else the default if it is free, else any free one."""
    wanted = settings.http_port
    if wanted:
        problem = _bind(settings.http_host, wanted)
        if problem is None:
            return wanted
        if "http_port" in settings.model_fields_set:
            raise HttpServerError(
                f"http_port: cannot listen on {settings.http_host}:{wanted} ({problem}); choose another with --port or "
                "BIOBRACKET_HTTP_PORT, where 0 takes any free one"
            )
    for found in random.sample(_PORTS, _TRIES):
        problem = _bind(settings.http_host, found)
        if problem is None:
            return found
    raise HttpServerError(f"http_port: {settings.http_host} has no free port ({problem}); check BIOBRACKET_HTTP_HOST")


def _bind(host: str, port: int) -> str | None:
    """What keeps a server from listening there; None if nothing does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or type(error).__name__
    return None
