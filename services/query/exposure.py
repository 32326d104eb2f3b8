"""Whether strangers could reach the HTTP interface, or Ray."""

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


def ray_problem(address: str, authenticates: bool, config: QueryConfig) -> str | None:
    """Why a Ray node must not have this address; None if it may. ``authenticates``: whether Ray asks for its token."""
    if is_loopback(address) or authenticates or config.allow_open_ray:
        return None
    return (
        f"ray: other machines can reach {address}, and whoever does can run code there, since Ray's token "
        "authentication is off; set RAY_AUTH_MODE=token, and the same RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, for every "
        "node and command of the cluster, or, if something else keeps strangers out, set "
        "BIOBRACKET_QUERY_ALLOW_OPEN_RAY=true"
    )
