"""Reviewers' feedback, stored in Redis, where every selector reads it.

Keys, all in one slot:

    bb:{feedback}:version   number of changes
    bb:{feedback}:changes   sorted set of ids by their last change
    bb:{feedback}:items     hash by id: `<milliseconds> <JSON>`, without JSON if the feedback was withdrawn
    bb:{feedback}:of:<document>       set of ids of feedback on a document, by the document's digest
    bb:{feedback}:erased:<document>   milliseconds up to which feedback on it was erased, until that expires
    bb:{feedback}:gone      sorted set of ids that were erased, by when; in time their `items` and `changes` go as well

If two pieces of feedback have the same id, the later one counts. A record read twice therefore changes nothing, and
withdrawn feedback stays withdrawn.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from shared.backends.result_store import connect, translated
from shared.selection.feedback import Changes, Feedback, FeedbackPage
from shared.settings import Settings

_PAGE = 500
_GONE = "bb:{feedback}:gone"
_KEYS = tuple(f"bb:{{feedback}}:{name}" for name in ("items", "changes", "version"))

# Stores feedback unless what is stored is as new. ARGV: id, milliseconds, JSON. Keys of its document come behind.
_PUT = """
if KEYS[4] then
    local erased = redis.call('GET', KEYS[5])
    if erased and tonumber(erased) >= tonumber(ARGV[2]) then return 0 end
end
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and tonumber(string.match(old, '^%d+')) >= tonumber(ARGV[2]) then return 0 end
if KEYS[4] then redis.call('SADD', KEYS[4], ARGV[1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
return 1
"""
# Removes what is left of feedback that was erased before ARGV[1], and has not been given again.
_PURGE = """
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', '(' .. ARGV[1])) do
    local old = redis.call('HGET', KEYS[1], id)
    if not (old and string.find(old, '{', 1, true)) then
        redis.call('HDEL', KEYS[1], id)
        redis.call('ZREM', KEYS[2], id)
    end
    redis.call('ZREM', KEYS[3], id)
end
"""
# Withdraws feedback, under a time later than its own. ARGV: id, milliseconds, and 1 if that time is binding: newer
# feedback then stays, and older feedback that arrives later is refused.
_UNDO = """
local old = redis.call('HGET', KEYS[1], ARGV[1])
local there = old and string.find(old, '{', 1, true)
if not there and (old or ARGV[3] == '0') then return 0 end
local at = tonumber(ARGV[2])
if old then
    local given = tonumber(string.match(old, '^%d+'))
    if ARGV[3] == '1' and given > at then return 0 end
    at = math.max(at, given + 1)
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', at))
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
return 1
"""


class FeedbackStore:
    """All feedback of a deployment. Thread-safe; each method may block on the network.

    Methods raise :class:`shared.errors.StoreError`.
    """

    def __init__(self, client: Any, erasure_ttl: int = 0) -> None:
        """``client``: a redis-py client that returns bytes; ``erasure_ttl``: seconds, 0 for ever."""
        self._client = client
        self._erasure_ttl = erasure_ttl
        self._purge = client.register_script(_PURGE)
        self._put = client.register_script(_PUT)
        self._undo = client.register_script(_UNDO)

    @classmethod
    def from_settings(cls, settings: Settings) -> FeedbackStore:
        """The store at ``settings.redis``."""
        return cls(connect(settings), settings.erasure_ttl)

    def put(self, feedback: Feedback) -> bool:
        """Stores feedback; False if such of the same id is as new, or was withdrawn, or its document erased, since."""
        with translated():
            args = [feedback.id, _milliseconds(feedback.time), feedback.model_dump_json()]
            return bool(self._put(keys=[*_KEYS, *_document_keys(feedback.document_id)], args=args))

    def undo(self, id: str, at: float | None = None) -> bool:
        """Withdraws feedback; False if there is none of this id.

        With ``at``, Unix seconds, only feedback no newer than that, even if it arrives later; False if nothing changes.
        """
        with translated():
            args = [id, _milliseconds(time.time() if at is None else at), int(at is not None)]
            return bool(self._undo(keys=_KEYS, args=args))

    def erase(self, document_id: str, at: float) -> int:
        """Erases the feedback on a document that is no newer than ``at``, Unix seconds; how much there was.

        Such that arrives later is refused, for as long as the mark of that is kept.
        """
        given, erased = _document_keys(document_id)
        count = 0
        with translated():
            kept = int(self._client.get(erased) or 0)
            self._client.set(erased, max(kept, _milliseconds(at)), ex=self._erasure_ttl or None)
            ids = list(self._client.smembers(given))
            for id_, item in zip(ids, self._items(ids), strict=True):
                ours = item is not None and item.document_id == document_id
                if ours and not self.undo(id_.decode(), at):  # it is newer
                    continue
                count += ours
                if ours or item is None:  # else the id was given to feedback on another document
                    self._client.zadd(_GONE, {id_: _milliseconds(time.time())})
                self._client.srem(given, id_)
            if self._erasure_ttl:
                keys = [_KEYS[0], _KEYS[1], _GONE]
                self._purge(keys=keys, args=[_milliseconds(time.time() - self._erasure_ttl)])
        return count

    def page(self, limit: int = 100, before: int | None = None) -> FeedbackPage:
        """At most ``limit`` items, most recently changed first; ``before``: `next` of the previous page."""
        found: list[Feedback] = []
        at = before  # the change last looked at
        with translated():
            while True:
                highest = "+inf" if at is None else f"({at}"
                rows = self._client.zrevrangebyscore(_KEYS[1], highest, "-inf", start=0, num=_PAGE, withscores=True)
                for item, (_, score) in zip(self._items([id_ for id_, _ in rows]), rows, strict=True):
                    if item is not None:
                        if len(found) == limit:
                            return FeedbackPage(feedback=tuple(found), next=at)
                        found.append(item)
                    at = int(score)
                if len(rows) < _PAGE:
                    return FeedbackPage(feedback=tuple(found), next=None)

    def version(self) -> int:
        """Increases with each change; 0 before the first."""
        with translated():
            return int(self._client.get(_KEYS[2]) or 0)

    def changes(self, since: int = 0) -> Changes:
        """What changed since a version."""
        version = self.version()
        restarted = version < since
        given: list[Feedback] = []
        gone: list[str] = []
        for ids, items in self._since(0 if restarted else since, version):
            for id_, item in zip(ids, items, strict=True):
                if item is None:
                    gone.append(id_.decode())
                else:
                    given.append(item)
        return Changes(version, tuple(given), tuple(gone), restarted)

    def _since(self, version: int, until: int) -> Iterator[tuple[list[bytes], list[Feedback | None]]]:
        while version < until:
            with translated():
                rows = self._client.zrangebyscore(_KEYS[1], f"({version}", until, start=0, num=_PAGE, withscores=True)
                if not rows:
                    return
                ids = [id_ for id_, _ in rows]
                yield ids, self._items(ids)
            version = int(rows[-1][1])

    def _items(self, ids: Sequence[bytes]) -> list[Feedback | None]:
        if not ids:
            return []
        values = (value.partition(b" ")[2] if value else b"" for value in self._client.hmget(_KEYS[0], ids))
        return [Feedback.model_validate_json(value) if value else None for value in values]

    def close(self) -> None:
        """Closes the connections."""
        with translated():
            self._client.close()


def _document_keys(document_id: str | None) -> tuple[str, ...]:
    if document_id is None:
        return ()
    digest = hashlib.sha256(document_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"bb:{{feedback}}:of:{digest}", f"bb:{{feedback}}:erased:{digest}"


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
