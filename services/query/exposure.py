"""Whether strangers could reach the HTTP interface."""

from __future__ import annotations

import ipaddress

from services.query.config import QueryConfig


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def problem(host: str, config: QueryConfig) -> str | None:
    """Why a server must not listen on ``host`` with these settings; None if it may."""
    if is_loopback(host) or config.authenticates or config.allow_unauthenticated:
        return None
    return (
        f"http_host: other machines can reach {host}, and whoever does could read and change everything, since no "
        "authentication is set up; set BIOBRACKET_QUERY_API_KEYS or BIOBRACKET_QUERY_JWKS, or listen on 127.0.0.1, or, "
        "if something else keeps strangers out, set BIOBRACKET_QUERY_ALLOW_UNAUTHENTICATED=true"
    )
