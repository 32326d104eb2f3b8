"""Reviewers' feedback, stored in Redis, where every selector reads it.

Keys, all in one slot:

    bb:{feedback}:version   number of changes
    bb:{feedback}:changes   sorted set of ids by their last change
    bb:{feedback}:items     hash by id: `<milliseconds> <JSON>`, without JSON if the feedback was withdrawn
    bb:{feedback}:of:<document>       set of ids of feedback on a document, by the document's digest
    bb:{feedback}:erased:<document>   milliseconds up to which feedback on it was erased, until that expires
    bb:{feedback}:gone      sorted set of ids that were erased, by when; in time their `items` and `changes` go as well
    bb:{feedback}:expiring  there for an hour after somebody looked which feedback has expired

With encryption (shared.backends.vault) the JSON is sealed, and digests stand for ids.

If two pieces of feedback have the same id, the later one counts. A record read twice therefore changes nothing, and
withdrawn feedback stays withdrawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from shared.backends.agreement import Agreement
from shared.backends.result_store import connect, translated
from shared.backends.vault import PLAIN, Vault, vault
from shared.errors import DocumentError
from shared.selection.feedback import Changes, Feedback, FeedbackPage
from shared.settings import Settings

_PAGE = 500
ITEMS = "bb:{feedback}:items"
_GONE = "bb:{feedback}:gone"
_EXPIRING = "bb:{feedback}:expiring"
_LOOK_S = 3600
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
    if not (old and string.find(old, '^%d+ .')) then
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
local there = old and string.find(old, '^%d+ .')
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

    def __init__(
        self,
        client: Any,
        erasure_ttl: int = 0,
        *,
        feedback_ttl: int = 0,
        vault: Vault = PLAIN,
        with_text: bool = True,
    ) -> None:
        """``client``: a redis-py client that returns bytes; times to live in seconds, 0 for ever.

        ``with_text``: see `store_text`; without text there is no feedback.
        """
        self._client = client
        self._erasure_ttl = erasure_ttl
        self._feedback_ttl = feedback_ttl
        self._vault = vault
        self._with_text = with_text
        self._agreement = Agreement(client, vault, self._samples)
        self._ids: dict[bytes, str] = {}  # what digests stand for, as far as this process has seen
        self._look_at = 0.0
        self._purge = client.register_script(_PURGE)
        self._put = client.register_script(_PUT)
        self._undo = client.register_script(_UNDO)

    @classmethod
    def from_settings(cls, settings: Settings) -> FeedbackStore:
        """The store at ``redis``. StoreError where its keys are not those of ``encryption_keys``."""
        store = cls(
            connect(settings),
            settings.erasure_ttl,
            feedback_ttl=settings.feedback_ttl,
            vault=vault(settings),
            with_text=settings.store_text == "all",
        )
        with translated():
            store._agreement.check_at_start()
        return store

    def put(self, feedback: Feedback) -> bool:
        """Stores feedback; False if such of the same id is as new, or was withdrawn, or its document erased, since.

        DocumentError where no text is kept.
        """
        if not self._with_text:
            raise DocumentError("text", "is not kept here, nor is feedback", "set BIOBRACKET_STORE_TEXT to all")
        with self._used():
            id_ = self._member(feedback.id)
            sealed = self._vault.seal(feedback.model_dump_json().encode(), item_place(id_))
            keys = [*_KEYS, *self._document_keys(feedback.document_id)]
            return bool(self._put(keys=keys, args=[id_, _milliseconds(feedback.time), sealed]))

    def undo(self, id: str, at: float | None = None) -> bool:
        """Withdraws feedback; False if there is none of this id.

        With ``at``, Unix seconds, only feedback no newer than that, even if it arrives later; False if nothing changes.
        """
        with self._used():
            return self._withdraw(self._member(id), at)

    def erase(self, document_id: str, at: float) -> int:
        """Erases the feedback on a document that is no newer than ``at``, Unix seconds; how much there was.

        Such that arrives later is refused, for as long as the mark of that is kept.
        """
        given, erased = self._document_keys(document_id)
        count = 0
        with self._used():
            kept = int(self._client.get(erased) or 0)
            self._client.set(erased, max(kept, _milliseconds(at)), ex=self._erasure_ttl or None)
            ids = list(self._client.smembers(given))
            for id_, item in zip(ids, self._items(ids), strict=True):
                ours = item is not None and item.document_id == document_id
                if ours and not self._withdraw(id_, at):  # it is newer
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
        with self._used():
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
        with self._used():
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
                    gone.append(self._ids.get(id_, id_.decode()))
                else:
                    given.append(item)
        return Changes(version, tuple(given), tuple(gone), restarted)

    def _since(self, version: int, until: int) -> Iterator[tuple[list[bytes], list[Feedback | None]]]:
        while version < until:
            with self._used():
                rows = self._client.zrangebyscore(_KEYS[1], f"({version}", until, start=0, num=_PAGE, withscores=True)
                if not rows:
                    return
                ids = [id_ for id_, _ in rows]
                yield ids, self._items(ids)
            version = int(rows[-1][1])

    def _items(self, ids: Sequence[bytes]) -> list[Feedback | None]:
        if not ids:
            return []
        return [self._read(id_, value) for id_, value in zip(ids, self._client.hmget(_KEYS[0], ids), strict=True)]

    def _read(self, id_: bytes, value: bytes | None) -> Feedback | None:
        sealed = value.partition(b" ")[2] if value else b""
        if not sealed:
            return None
        item = Feedback.model_validate_json(self._vault.open(sealed, item_place(id_)))
        self._member(item.id)
        return item

    def _member(self, id: str) -> bytes:
        """What stands for an id in keys and fields."""
        member = self._vault.member("feedback", id).encode()
        if self._vault is not PLAIN:
            self._ids[member] = id
        return member

    def _withdraw(self, id_: bytes, at: float | None) -> bool:
        args = [id_, _milliseconds(time.time() if at is None else at), int(at is not None)]
        return bool(self._undo(keys=_KEYS, args=args))

    def expire(self) -> None:
        """Withdraws feedback that is older than its time to live. Call it time and again: it looks once an hour."""
        if not self._feedback_ttl or time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_S
        with self._used():
            if not self._client.set(_EXPIRING, "", nx=True, ex=_LOOK_S):
                return
            limit = _milliseconds(time.time() - self._feedback_ttl)
            for id_, value in self._client.hscan_iter(_KEYS[0], count=_PAGE):
                given, _, sealed = value.partition(b" ")
                if sealed and int(given) < limit and self._withdraw(id_, int(given) / 1000):
                    self._client.zadd(_GONE, {id_: _milliseconds(time.time())})

    def _samples(self) -> Iterator[tuple[bytes, str]]:
        """A stored value and its place, if there is one: of a store whose keys were not noted."""
        for id_, value in self._client.hscan_iter(_KEYS[0], count=_PAGE):
            if sealed := value.partition(b" ")[2]:
                yield sealed, item_place(id_)
                return

    def _document_keys(self, document_id: str | None) -> tuple[str, ...]:
        if document_id is None:
            return ()
        digest = self._vault.name("document", document_id)
        return f"bb:{{feedback}}:of:{digest}", f"bb:{{feedback}}:erased:{digest}"

    @contextmanager
    def _used(self) -> Iterator[None]:
        """As :func:`translated`, once it is known that the store's keys are this process's."""
        with translated():
            self._agreement.check()
            yield

    def close(self) -> None:
        """Closes the connections."""
        with translated():
            self._client.close()


def item_place(id_: bytes) -> str:
    """The place of an item, for its vault."""
    return f"{ITEMS}\x1f{id_.decode()}"


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
