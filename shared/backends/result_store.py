"""Results, the mention index and the segment cache, in Redis, Valkey or a Redis Cluster.

Keys; the part in braces determines the slot in a cluster:

    bb:{<bucket>}:d:<document>       hash: `json`, the newest result; `entities`, how many it has; `k:<key>`, a field
                                     for every extraction key written, whose value is the mark of the record that
                                     published it
    bb:{<bucket>}:n                  hash of counters: `documents`, `entities`
    bb:m:{<text>}, bb:m:{<text>}:<type>  ids of the documents that mention a text (as a type), by time of writing
    bb:s:{<segment>}                 a cached segment, opaque bytes

`<document>`, `<key>`, `<text>` and `<segment>` are digests: keys contain no clinical text. The bucket is the first two
hex digits of the document's digest, so a document and its counters share a slot and change atomically.

The index is a hint: readers check every mention against the document's result, so answers are correct even if a writer
died half-way. By default results do not expire and segments do: with `maxmemory-policy volatile-lru` a full server
evicts segments and never results.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from pydantic import ValidationError
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.errors import StoreError
from shared.messages import Extraction, Mention
from shared.settings import Settings

_BUCKETS = tuple(f"{n:02x}" for n in range(256))
# Stale index entries are dropped when read, but not while their writer may still be about to write the result.
_SETTLED_MS = 3600 * 1000
_PAGE = 100
# The result of a 10 MB document is a few MB; a server that takes longer than this for one is stuck.
_SOCKET_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0

# Writes a result unless its key was written before. Returns 0, or the result it replaces, or 1 if there was none.
_PUT = """
if redis.call('HSETNX', KEYS[1], 'k:' .. ARGV[1], '') == 0 then return 0 end
local old = redis.call('HMGET', KEYS[1], 'json', 'entities')
redis.call('HSET', KEYS[1], 'json', ARGV[2], 'entities', ARGV[3])
if not old[1] then redis.call('HINCRBY', KEYS[2], 'documents', 1) end
redis.call('HINCRBY', KEYS[2], 'entities', ARGV[3] - (old[2] or 0))
if tonumber(ARGV[4]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
return old[1] or 1
"""

_RETRYABLE = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    SlotNotCoveredError,
    TryAgainError,
    OSError,
)


# Only if the key was written: a field alone would look like a result.
_MARK = """
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""


class ResultStore:
    """The store of one deployment. Thread-safe; every method may block on the network and raise :class:`StoreError`."""

    def __init__(self, client: Any, *, result_ttl: int = 0, segment_ttl: int = 0) -> None:
        """``client``: a redis-py client that returns bytes; times to live in seconds, 0 for no expiry."""
        self._client = client
        self._result_ttl = result_ttl
        self._segment_ttl = segment_ttl
        self._write = client.register_script(_PUT)
        self._mark = client.register_script(_MARK)

    @classmethod
    def from_settings(cls, settings: Settings) -> ResultStore:
        """The store configured by ``redis``, ``redis_cluster``, ``result_ttl`` and ``segment_ttl``."""
        client = connect(settings)
        return cls(client, result_ttl=settings.result_ttl, segment_ttl=settings.segment_ttl)

    def put(self, extraction: Extraction) -> bool:
        """Writes a result and indexes its mentions; True if ``extraction.key`` was new.

        A key written before changes nothing, even if a newer result has replaced it since. Once this returns, or the
        result can be read, its mentions are indexed.
        """
        document = _document_key(extraction.document_id)
        key = _digest(extraction.key)
        new = _mentioned(extraction)
        with translated():
            if self._client.hexists(document, f"k:{key}"):
                return False
            self._index(extraction.document_id, new)
            old = self._write(
                keys=[document, _counter_key(document)],
                args=[key, extraction.model_dump_json(), len(extraction.entities), self._result_ttl],
            )
            if isinstance(old, bytes):
                replaced = _parse(old)
                if replaced is not None:
                    self._unindex(extraction.document_id, _mentioned(replaced) - new)
        return bool(old != 0)

    def mark_published(self, extraction: Extraction, mark: str) -> None:
        """Notes which record published a stored result. Replaces an earlier mark."""
        with translated():
            self._mark(keys=[_document_key(extraction.document_id)], args=[f"k:{_digest(extraction.key)}", mark])

    def published(self, extraction: Extraction) -> str | None:
        """The mark of a result; None if it was not published or not stored."""
        with translated():
            mark = self._client.hget(_document_key(extraction.document_id), f"k:{_digest(extraction.key)}")
        return mark.decode() if mark else None

    def get(self, document_id: str) -> Extraction | None:
        """The newest result of a document. StoreError where another version of biobracket wrote it."""
        with translated():
            raw = self._client.hget(_document_key(document_id), "json")
        if raw is None:
            return None
        extraction = _parse(raw)
        if extraction is None:
            raise StoreError(
                "redis: the stored result is not of this version of biobracket; process the document again, "
                "or set BIOBRACKET_REDIS to a database of this version",
                retryable=False,
            )
        return extraction

    def versions(self, document_ids: Sequence[str]) -> list[tuple[Extraction | None, set[str]]]:
        """The newest result of each document, if any, and the marks of all records that published one of it."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for document_id in document_ids:
                pipe.hgetall(_document_key(document_id))
            hashes = pipe.execute()
        return [
            (
                _parse(fields[b"json"]) if b"json" in fields else None,
                {value.decode() for name, value in fields.items() if name.startswith(b"k:") and value},
            )
            for fields in hashes
        ]

    def mentions(self, text: str, type: str | None = None, limit: int = 100) -> list[Mention]:
        """At most ``limit`` mentions of a text, most recently written documents first.

        Case and surrounding white space are ignored. ``type``: a canonical key, or None for all types.
        """
        wanted = _normal(text)
        index = _index_key(wanted, type)
        found: list[Mention] = []
        stale: list[bytes] = []
        settled = _now_ms() - _SETTLED_MS
        start = 0
        with translated():
            while len(found) < limit:
                page = self._client.zrange(index, start, start + _PAGE - 1, desc=True, withscores=True)
                if not page:
                    break
                start += _PAGE
                with self._client.pipeline(transaction=False) as pipe:
                    for member, _ in page:
                        pipe.hget(_document_key(member.decode()), "json")
                    results = pipe.execute()
                for (member, written), raw in zip(page, results, strict=True):
                    extraction = None if raw is None else _parse(raw)
                    here = [
                        Mention(document_id=member.decode(), entity=entity)
                        for entity in (extraction.entities if extraction else ())
                        if _normal(entity.text) == wanted and type in (None, entity.type)
                    ]
                    found += here
                    if not here and written < settled:
                        stale.append(member)
            if stale:
                self._client.zrem(index, *stale)
        return found[:limit]

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]:
        """The cached bytes of each key, in the order of ``keys``; None where there are none."""
        if not keys:
            return []
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.get(_segment_key(key))
            return list(pipe.execute())

    def put_segments(self, segments: Mapping[str, bytes]) -> None:
        """Caches the bytes of each key for ``segment_ttl`` seconds."""
        if not segments:
            return
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for key, value in segments.items():
                pipe.set(_segment_key(key), value, ex=self._segment_ttl or None)
            pipe.execute()

    def counts(self) -> dict[str, int]:
        """``documents`` and ``entities`` of the newest results; with ``result_ttl``, expired ones still count."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for bucket in _BUCKETS:
                pipe.hmget(f"bb:{{{bucket}}}:n", "documents", "entities")
            counters = pipe.execute()
        return {
            "documents": sum(int(documents or 0) for documents, _ in counters),
            "entities": sum(int(entities or 0) for _, entities in counters),
        }

    def ping(self) -> None:
        """Raises StoreError if the store cannot be reached."""
        with translated():
            self._client.ping()

    def close(self) -> None:
        """Closes the connections."""
        with translated():
            self._client.close()

    def _index(self, document_id: str, indexes: set[str]) -> None:
        now = _now_ms()
        with self._client.pipeline(transaction=False) as pipe:
            for index in indexes:
                pipe.zadd(index, {document_id: now})
                if self._result_ttl:
                    pipe.zremrangebyscore(index, "-inf", now - self._result_ttl * 1000)
                    pipe.expire(index, self._result_ttl + _SETTLED_MS // 1000)
            pipe.execute()

    def _unindex(self, document_id: str, indexes: set[str]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for index in indexes:
                pipe.zrem(index, document_id)
            pipe.execute()


def connect(settings: Settings) -> Any:
    """A redis-py client for ``redis`` and ``redis_cluster``. Raises StoreError."""
    factory = redis.RedisCluster if settings.redis_cluster else redis.Redis
    with translated():
        try:
            return factory.from_url(
                settings.redis.get_secret_value(),
                socket_timeout=_SOCKET_TIMEOUT_S,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
            )
        except ValueError:  # its message may quote the URL, which holds the password
            raise StoreError(
                "redis: not a URL; set BIOBRACKET_REDIS to something like redis://:password@host:6379/0",
                retryable=False,
            ) from None


@contextmanager
def translated() -> Iterator[None]:
    """Turns redis-py's errors into StoreError, `from None`: their messages may quote commands or the password."""
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as raised:
        # When no node of a cluster can be used, the cause is what went wrong with the last one.
        error = raised.__cause__ if isinstance(raised, RedisClusterException) and raised.__cause__ else raised
        # A pipeline adds the command to the message and keeps the class; a script keeps only the prefix.
        full = isinstance(error, OutOfMemoryError) or "OOM command not allowed" in str(error)
        if full:
            raise StoreError(
                "redis: out of memory; raise its maxmemory, set BIOBRACKET_RESULT_TTL, or add nodes", retryable=True
            ) from None
        raise StoreError(
            f"redis: {type(error).__name__}; check that BIOBRACKET_REDIS names a running server and its password, and "
            "BIOBRACKET_REDIS_CLUSTER whether it is a cluster, or start the embedded one with `biobracket up`",
            retryable=isinstance(error, _RETRYABLE)
            and not isinstance(error, (AuthenticationError, AuthorizationError)),
        ) from None


def _parse(raw: bytes) -> Extraction | None:
    try:
        return Extraction.model_validate_json(raw)
    except ValidationError:
        return None


def _mentioned(extraction: Extraction) -> set[str]:
    """The index keys of an extraction."""
    return {
        index
        for entity in extraction.entities
        for index in (_index_key(_normal(entity.text), None), _index_key(_normal(entity.text), entity.type))
    }


def _normal(text: str) -> str:
    return text.strip().casefold()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _document_key(document_id: str) -> str:
    digest = _digest(document_id)
    return f"bb:{{{digest[:2]}}}:d:{digest}"


def _counter_key(document_key: str) -> str:
    return document_key.partition("}")[0] + "}:n"


def _index_key(normal: str, type: str | None) -> str:
    return f"bb:m:{{{_digest(normal)}}}" + (f":{type}" if type else "")


def _segment_key(key: str) -> str:
    return f"bb:s:{{{_digest(key)}}}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
