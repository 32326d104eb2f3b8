"""The index of mentions: which documents mention a text. See :mod:`shared.backends.result_store` for its keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shared.backends.vault import PLAIN, Vault
from shared.messages import Entity, Erasure, Extraction, Mention

# Stale entries are dropped when read, but not while their writer may still be about to write the result.
SETTLED_MS = 3600 * 1000
_PAGE = 100


class MentionIndex:
    """The index of one store. Thread-safe; methods raise what the Redis client does."""

    def __init__(self, client: Any, result_ttl: int, vault: Vault = PLAIN) -> None:
        """``result_ttl``: seconds that a result is kept, 0 for ever."""
        self._client = client
        self._vault = vault
        self._result_ttl = result_ttl

    def add(self, document_id: str, keys: Iterable[str]) -> None:
        """Lets a document be found under these keys."""
        member, now = self._vault.member("document", document_id), _now_ms()
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.zadd(key, {member: now})
                if self._result_ttl:
                    pipe.zremrangebyscore(key, "-inf", now - self._result_ttl * 1000)
                    pipe.expire(key, self._result_ttl + SETTLED_MS // 1000)
            pipe.execute()

    def remove(self, document_id: str, keys: Iterable[str]) -> None:
        """Lets a document not be found under these keys any more."""
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.zrem(key, self._vault.member("document", document_id))
            pipe.execute()

    def find(
        self,
        text: str,
        type: str | None,
        limit: int,
        read: Callable[[Sequence[str]], Sequence[Extraction | Erasure | None]],
    ) -> list[Mention]:
        """At most ``limit`` mentions of a text, most recently written documents first.

        ``read`` returns the newest result of each document, by its member: what is not mentioned there is not found.
        """
        wanted = _normal(text)
        digest = _digest(wanted, self._vault)
        key = _key(digest, type)
        found: list[Mention] = []
        stale: list[bytes] = []
        settled = _now_ms() - SETTLED_MS
        start = 0
        while len(found) < limit:
            page = self._client.zrange(key, start, start + _PAGE - 1, desc=True, withscores=True)
            if not page:
                break
            start += _PAGE
            results = read([member.decode() for member, _ in page])
            for (member, written), result in zip(page, results, strict=True):
                here = (
                    [
                        Mention(document_id=result.document_id, entity=entity)
                        for entity in result.entities
                        if type in (None, entity.type) and _says(entity, wanted, digest)
                    ]
                    if isinstance(result, Extraction)
                    else []
                )
                found += here
                if not here and written < settled:
                    stale.append(member)
        if stale:
            self._client.zrem(key, *stale)
        return found[:limit]


def keys_of(extraction: Extraction, vault: Vault = PLAIN) -> set[str]:
    """The keys under which the document of an extraction is found."""
    digests = {(hash_of(entity, vault), entity.type) for entity in extraction.entities}
    return {_key(digest, type_) for digest, own in digests for type_ in (None, own)}


def hash_of(entity: Entity, vault: Vault) -> str:
    """The digest by which a mention is found; one without text has it with it, as ``text_hash``."""
    return _hash(entity) or _digest(_normal(entity.text), vault)


def _says(entity: Entity, wanted: str, digest: str) -> bool:
    hash_ = _hash(entity)
    return _normal(entity.text) == wanted if hash_ is None else hash_ == digest


def _hash(entity: Entity) -> str | None:
    found = (entity.model_extra or {}).get("text_hash")
    return found if isinstance(found, str) and not entity.text else None


def _normal(text: str) -> str:
    return text.strip().casefold()


def _digest(normal: str, vault: Vault) -> str:
    return vault.name("mention", normal)


def _key(digest: str, type: str | None) -> str:
    return f"bb:m:{{{digest}}}" + (f":{type}" if type else "")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
