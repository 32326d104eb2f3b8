"""The index of mentions: which documents mention a text. See :mod:`shared.backends.result_store` for its keys."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shared.messages import Erasure, Extraction, Mention

# Stale entries are dropped when read, but not while their writer may still be about to write the result.
SETTLED_MS = 3600 * 1000
_PAGE = 100


class MentionIndex:
    """The index of one store. Thread-safe; methods raise what the Redis client does."""

    def __init__(self, client: Any, result_ttl: int) -> None:
        """``result_ttl``: seconds that a result is kept, 0 for ever."""
        self._client = client
        self._result_ttl = result_ttl

    def add(self, document_id: str, keys: Iterable[str]) -> None:
        """Lets a document be found under these keys."""
        now = _now_ms()
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.zadd(key, {document_id: now})
                if self._result_ttl:
                    pipe.zremrangebyscore(key, "-inf", now - self._result_ttl * 1000)
                    pipe.expire(key, self._result_ttl + SETTLED_MS // 1000)
            pipe.execute()

    def remove(self, document_id: str, keys: Iterable[str]) -> None:
        """Lets a document not be found under these keys any more."""
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.zrem(key, document_id)
            pipe.execute()

    def find(
        self,
        text: str,
        type: str | None,
        limit: int,
        read: Callable[[Sequence[str]], Sequence[Extraction | Erasure | None]],
    ) -> list[Mention]:
        """At most ``limit`` mentions of a text, most recently written documents first.

        ``read`` returns the newest result of each document: what is not mentioned there is not found.
        """
        wanted = _normal(text)
        key = _key(wanted, type)
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
                here = [
                    Mention(document_id=member.decode(), entity=entity)
                    for entity in (result.entities if isinstance(result, Extraction) else ())
                    if _normal(entity.text) == wanted and type in (None, entity.type)
                ]
                found += here
                if not here and written < settled:
                    stale.append(member)
        if stale:
            self._client.zrem(key, *stale)
        return found[:limit]


def keys_of(extraction: Extraction) -> set[str]:
    """The keys under which the document of an extraction is found."""
    return {
        key
        for entity in extraction.entities
        for key in (_key(_normal(entity.text), None), _key(_normal(entity.text), entity.type))
    }


def _normal(text: str) -> str:
    return text.strip().casefold()


def _key(normal: str, type: str | None) -> str:
    digest = hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"bb:m:{{{digest}}}" + (f":{type}" if type else "")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
