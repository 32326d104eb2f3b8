"""Seals what a store has under the current key, while its clients go on: then the keys before can be removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from shared.backends.feedback_store import ITEMS, item_place
from shared.backends.result_store import connect, translated
from shared.backends.stored_results import result_place
from shared.backends.vault import SealError, Vault, key_of, vault
from shared.settings import Settings

_PAGE = 100
_SCAN = 1000

# Replaces a value unless it is another one by now. ARGV: what is there, what takes its place, and a hash's field.
_SWAP_FIELD = """
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[2])
return 1
"""
_SWAP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
"""


@dataclass(frozen=True, slots=True)
class Resealed:
    """``sealed``: values now under the current key that were not; ``others``: those that are already.

    ``unreadable``: damaged ones, and those of a key that is not there. Segments among them are only a cache.
    """

    sealed: int = 0
    others: int = 0
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class _Value:
    client: Any
    key: bytes
    field: bytes | None
    head: bytes  # stays as it is
    sealed: bytes
    place: str


def reseal(settings: Settings, report: Callable[[int], None] = lambda done: None) -> Resealed:
    """Passes over all values once; ``report`` gets how many. What is written meanwhile is under the current key anyway.

    Errors: StoreError. May be done again at any time.
    """
    keys = vault(settings)
    counts: Counter[str] = Counter()
    with _clients(settings) as clients, translated():
        for value in _values(*clients):
            counts[_resealed(value, keys)] += 1
            report(counts.total())
    return Resealed(**counts)


def used(settings: Settings) -> Counter[str]:
    """How many values are sealed under each key, by its id. StoreError."""
    with _clients(settings) as clients, translated():
        return Counter(id_ for value in _values(*clients) if (id_ := _id(value)) is not None)


@contextmanager
def _clients(settings: Settings) -> Iterator[tuple[Any, Any]]:
    """Of the results, and of the cached segments."""
    with closing(connect(settings)) as client:
        if not settings.redis_cache.get_secret_value():
            yield client, client
            return
        with closing(connect(settings, cache=True)) as cache:
            yield client, cache


def _resealed(value: _Value, keys: Vault) -> str:
    try:
        if keys.current(value.sealed):
            return "others"
        new = value.head + keys.seal(keys.open(value.sealed, value.place), value.place)
    except SealError:
        return "unreadable"
    old = value.head + value.sealed
    args = [old, new] if value.field is None else [old, new, value.field]
    swapped = value.client.eval(_SWAP if value.field is None else _SWAP_FIELD, 1, value.key, *args)
    return "sealed" if swapped else "others"


def _id(value: _Value) -> str | None:
    try:
        return key_of(value.sealed)
    except SealError:
        return None


def _values(client: Any, cache: Any) -> Iterator[_Value]:
    keys = client.scan_iter(match="bb:{??}:d:*", count=_SCAN)
    while some := list(islice(keys, _PAGE)):
        for key, raw in zip(some, _read(client, some, "hget", "json"), strict=True):
            if raw is not None:
                yield _Value(client, key, b"json", b"", raw, result_place(key.decode()))
    for id_, item in client.hscan_iter(ITEMS, count=_SCAN):
        given, space, sealed = item.partition(b" ")
        if sealed:
            yield _Value(client, ITEMS.encode(), id_, given + space, sealed, item_place(id_))
    keys = cache.scan_iter(match="bb:s:*", count=_SCAN)
    while some := list(islice(keys, _PAGE)):
        for key, raw in zip(some, _read(cache, some, "get"), strict=True):
            if raw is not None:
                yield _Value(cache, key, None, b"", raw, key.decode())


def _read(client: Any, keys: list[bytes], command: str, *args: str) -> list[bytes | None]:
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            getattr(pipe, command)(key, *args)
        found: list[bytes | None] = pipe.execute()
    return found
