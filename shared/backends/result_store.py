"""Results, the mention index and the segment cache, in Redis, Valkey or a Redis Cluster.

Keys; the part in braces determines the slot in a cluster:

    bb:{<bucket>}:d:<document>       hash: `json`, the result at the latest source position; `entities`, how many it
                                     has; `version`, a digest of position and extraction key; the position's parts;
                                     `published`, the version last published; `open:<version>`, for each version
                                     whose publication has begun and is not known to have ended
    bb:{<bucket>}:n                  hash of counters: `documents`, `entities`
    bb:m:{<text>}, bb:m:{<text>}:<type>  ids of the documents that mention a text (as a type), by time of writing
    bb:s:{<segment>}                 a cached segment, opaque bytes

`<document>`, `<version>`, `<text>` and `<segment>` are digests: keys contain no clinical text. The bucket is the first
two hex digits of the document's digest, so a document and its counters share a slot and change atomically.

The index is a hint: readers check every mention against the document's result, so answers are correct even if a writer
died half-way. By default results do not expire and segments do: with `maxmemory-policy volatile-lru` a full server
evicts segments and never results. Segments may be on a server of their own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

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
from shared.messages import Extraction, Mention, SourcePosition
from shared.settings import Settings

_BUCKETS = tuple(f"{n:02x}" for n in range(256))
# Stale index entries are dropped when read, but not while their writer may still be about to write the result.
_SETTLED_MS = 3600 * 1000
_PAGE = 100
# The result of a 10 MB document is a few MB; a server that takes longer than this for one is stuck.
_SOCKET_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0

# Writes a result unless one of a later source position is there, by the rule of SourcePosition.later_than; a result
# without a position is earlier than any with one. Returns the outcome, and the stored result where it has to be
# published; for `written` the one it replaced.
_PUT = """
local version, topic, id, partition, offset, time = ARGV[1], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local open = 'open:' .. version
local old = redis.call('HMGET', KEYS[1], 'version', 'json', 'entities', 'published',
                       'topic', 'topic_id', 'partition', 'offset', 'time')
if old[1] == version then
  if ARGV[10] == '1' then return {'unchanged', false} end
  if old[4] == version then
    redis.call('HDEL', KEYS[1], open)
    return {'unchanged', false}
  end
  redis.call('HSET', KEYS[1], open, '')
  return {'unchanged', old[2]}
end
local function later()
  if not old[1] or old[5] == '' then return false end
  if topic == '' then return true end
  if old[5] == topic and old[7] == partition and (old[6] == id or old[6] == '' or id == '') then
    return tonumber(old[8]) > tonumber(offset)
  end
  for _, pair in ipairs({{old[9], time}, {old[8], offset}, {old[7], partition}}) do
    if tonumber(pair[1]) ~= tonumber(pair[2]) then return tonumber(pair[1]) > tonumber(pair[2]) end
  end
  return old[6] > id
end
if later() then
  return {'superseded', redis.call('HEXISTS', KEYS[1], open) == 1 and old[2]}
end
if not old[1] then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'version', version, 'json', ARGV[2], 'entities', ARGV[3], 'topic', topic, 'topic_id', id,
           'partition', partition, 'offset', offset, 'time', time)
if ARGV[10] == '1' then redis.call('HSET', KEYS[1], 'published', version) else redis.call('HSET', KEYS[1], open, '') end
if not old[2] then redis.call('HINCRBY', KEYS[2], 'documents', 1) end
redis.call('HINCRBY', KEYS[2], 'entities', ARGV[3] - (old[3] or 0))
if tonumber(ARGV[4]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[4]) end
return {'written', old[2]}
"""

# The version in ARGV[2] was published on behalf of that in ARGV[1]. Returns 1 if it is the newest, 0 if there is no
# result (any more), else the newest. What is open stays so until its publisher knows that the newest came last.
_PUBLISHED = """
local now = redis.call('HMGET', KEYS[1], 'version', 'json')
if not now[1] then return 0 end
if now[1] ~= ARGV[2] then return now[2] end
redis.call('HSET', KEYS[1], 'published', ARGV[2])
redis.call('HDEL', KEYS[1], 'open:' .. ARGV[1])
return 1
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


@dataclass(frozen=True, slots=True)
class Write:
    """What became of a result given to the store."""

    outcome: Literal["written", "unchanged", "superseded"]
    unpublished: Extraction | None  # the stored result, where it has to be published (again)


class ResultStore:
    """The store of one deployment. Thread-safe; every method may block on the network and raise :class:`StoreError`."""

    def __init__(self, client: Any, cache: Any = None, *, result_ttl: int = 0, segment_ttl: int = 0) -> None:
        """``client``: a redis-py client that returns bytes; times to live in seconds, 0 for no expiry.

        ``cache``: one for the cached segments, if they are on a server of their own.
        """
        self._client = client
        self._cache = client if cache is None else cache
        self._result_ttl = result_ttl
        self._segment_ttl = segment_ttl
        self._write = client.register_script(_PUT)
        self._note = client.register_script(_PUBLISHED)

    @classmethod
    def from_settings(cls, settings: Settings) -> ResultStore:
        """The store configured by ``redis``, ``redis_cluster``, ``redis_cache``, ``result_ttl`` and ``segment_ttl``."""
        client = connect(settings)
        cache = connect(settings, cache=True) if settings.redis_cache.get_secret_value() else None
        return cls(client, cache, result_ttl=settings.result_ttl, segment_ttl=settings.segment_ttl)

    def put(self, extraction: Extraction, *, published: bool = False) -> Write:
        """Write a result and index its mentions, unless one at a later source position is stored.

        One at the same position is replaced if its key differs, as after a change of the model; with the same key
        nothing changes. Once this returns, or the result can be read, its mentions are indexed.

        Whoever publishes results publishes ``unpublished``, then calls :meth:`published`, until nothing is left. That
        makes the newest result the last one published, whatever other writers do meanwhile and wherever one dies: its
        record is not committed, so it is given to the store again, which knows that its publication was left open.

        ``published``: the result comes from where results are published.
        """
        document = _document_key(extraction.document_id)
        source = extraction.source
        new = _mentioned(extraction)
        with translated():
            if self._may_write(document, extraction):
                self._index(extraction.document_id, new)
            outcome, stored = self._write(
                keys=[document, _counter_key(document)],
                args=[
                    _version(extraction),
                    extraction.model_dump_json(),
                    len(extraction.entities),
                    self._result_ttl,
                    *(("", "", 0, 0, 0) if source is None else _parts(source)),
                    int(published),
                ],
            )
            if outcome == b"written":
                replaced = None if stored is None else _parse(stored)
                if replaced is not None and (gone := _mentioned(replaced) - new):
                    self._unindex(extraction.document_id, gone)
                    self._index_again(document, extraction)
                return Write("written", None if published else extraction)
        unpublished = None if stored is None or published else _parse(stored)
        return Write("unchanged" if outcome == b"unchanged" else "superseded", unpublished)

    def published(self, extraction: Extraction, what: Extraction) -> Extraction | None:
        """Note that ``what`` was published where :meth:`put` of ``extraction`` asked for it.

        Returns what has to be published now, since a later result was stored meanwhile; None if the newest one is out.
        """
        key = _document_key(extraction.document_id)
        with translated():
            newest = self._note(keys=[key], args=[_version(extraction), _version(what)])
        if newest == 0:  # the server lost it
            return self.put(extraction).unpublished
        return None if newest == 1 else _parse(newest)

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

    def newest(self, document_ids: Sequence[str]) -> list[Extraction | None]:
        """The newest result of each document; None where there is none of this version of biobracket."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for document_id in document_ids:
                pipe.hget(_document_key(document_id), "json")
            return [None if raw is None else _parse(raw) for raw in pipe.execute()]

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
        with translated(), self._cache.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.get(_segment_key(key))
            return list(pipe.execute())

    def put_segments(self, segments: Mapping[str, bytes]) -> None:
        """Caches the bytes of each key for ``segment_ttl`` seconds."""
        if not segments:
            return
        with translated(), self._cache.pipeline(transaction=False) as pipe:
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
            if self._cache is not self._client:
                self._cache.close()

    def _may_write(self, document: str, extraction: Extraction) -> bool:
        """Whether the result would be written; the script decides, this spares index entries of one that is not."""
        version, topic, id_, *numbers = self._client.hmget(
            document, "version", "topic", "topic_id", "partition", "offset", "time"
        )
        if version is None or not topic:
            return bool(version != _version(extraction).encode())
        partition, offset, time_ms = map(int, numbers)
        stored = SourcePosition(
            topic=topic.decode(), topic_id=id_.decode(), partition=partition, offset=offset, timestamp_ms=time_ms
        )
        source = extraction.source
        return source is not None and not stored.later_than(source)

    def _index_again(self, document: str, extraction: Extraction) -> None:
        """Index a result that replaced this one while index entries were removed, which could have been its."""
        version, raw = self._client.hmget(document, "version", "json")
        if version != _version(extraction).encode() and raw is not None and (newest := _parse(raw)) is not None:
            self._index(extraction.document_id, _mentioned(newest))

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


def connect(settings: Settings, *, cache: bool = False) -> Any:
    """A redis-py client for ``redis`` and ``redis_cluster``; with ``cache`` for ``redis_cache``. Raises StoreError."""
    factory = redis.RedisCluster if settings.redis_cluster and not cache else redis.Redis
    with translated():
        try:
            return factory.from_url(
                (settings.redis_cache if cache else settings.redis).get_secret_value(),
                socket_timeout=_SOCKET_TIMEOUT_S,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
            )
        except ValueError:  # its message may quote the URL, which holds the password
            raise StoreError(
                f"redis: not a URL; set BIOBRACKET_REDIS{'_CACHE' if cache else ''} to something like "
                "redis://:password@host:6379/0",
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
                "redis: out of memory; raise its maxmemory, or give the cache a server of its own "
                "(BIOBRACKET_REDIS_CACHE)",
                retryable=True,
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


def _version(extraction: Extraction) -> str:
    place = "" if extraction.source is None else "\x1f".join(map(str, _parts(extraction.source)))
    return _digest(f"{place}\x1e{extraction.key}")


def _parts(source: SourcePosition) -> tuple[str, str, int, int, int]:
    return source.topic, source.topic_id, source.partition, source.offset, source.timestamp_ms


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
