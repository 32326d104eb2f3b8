"""Whether the store's server could evict results: it must not, since nothing would tell that they are gone."""

from __future__ import annotations

from typing import Any

import redis

from shared.backends.result_store import connect, translated
from shared.errors import StoreError
from shared.settings import Settings


def refuse_eviction(settings: Settings) -> bool:
    """StoreError where a full server would evict results rather than refuse writes; what it says is the remedy.

    Returns whether that is known: a managed server may not tell its configuration. A server that cannot be reached is
    a StoreError that is ``retryable``.
    """
    client = connect(settings)
    try:
        with translated():
            try:
                nodes = _configurations(client, settings)
            except redis.ResponseError:  # not allowed, or renamed
                return False
    finally:
        client.close()
    for limit, policy in nodes:
        if int(limit) and (policy.startswith("allkeys") or (policy.startswith("volatile") and settings.result_ttl)):
            lasting = "" if policy.startswith("allkeys") else ", or BIOBRACKET_RESULT_TTL to 0"
            raise StoreError(
                f"redis: with maxmemory-policy {policy} a full server evicts acknowledged results; set it to "
                f"noeviction{lasting}, and give the cache a server of its own (BIOBRACKET_REDIS_CACHE) that may evict",
                retryable=False,
            )
    return True


def _configurations(client: Any, settings: Settings) -> list[tuple[str, str]]:
    """``maxmemory`` in bytes, 0 for none, and ``maxmemory-policy``, of each server."""
    names = ("maxmemory", "maxmemory-policy")
    if settings.redis_cluster:
        primaries = client.get_primaries()
        found = [client.config_get(*names, target_nodes=node) for node in primaries]
    else:
        found = [client.config_get(*names)]
    return [tuple(_text(each[name]) for name in names) for each in found]  # type: ignore[misc]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
