"""A Ray node for this process alone, unreachable from other machines."""

from __future__ import annotations

from typing import Any

LOOPBACK = "127.0.0.1"


def on_loopback() -> dict[str, Any]:
    """Arguments of ``ray.init`` for such a node; from now on Ray keeps loopback addresses in this process."""
    # Otherwise Ray replaces the address by one that other machines can reach, and listens on all interfaces.
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host
    return {
        "address": "local",
        "_node_ip_address": LOOPBACK,
        "include_dashboard": False,
        "configure_logging": False,
    }
