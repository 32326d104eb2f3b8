"""A Ray node of this process alone, which no other machine reaches."""

from __future__ import annotations

from typing import Any

LOOPBACK = "127.0.0.1"


def on_loopback() -> dict[str, Any]:
    """Arguments of ``ray.init`` for such a node; from here on this process leaves a loopback address as it is."""
    # Else Ray replaces it by one that other machines reach, and listens everywhere.
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host
    return {
        "address": "local",
        "_node_ip_address": LOOPBACK,
        "include_dashboard": False,
        "configure_logging": False,
    }
