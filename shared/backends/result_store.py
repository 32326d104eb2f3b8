"""Results, the mention index and the segment cache, in Redis, Valkey or a Redis Cluster.

Keys; the part in braces determines the slot in a cluster:

    bb:{<bucket>}:d:<document>       hash: `json`, the result at the latest source position; `entities`, how many it
                                     has; `version`, a digest of position and extraction key; the position's parts;
                                     `published`, the version last published; `open:<version>`, how many have begun
                                     to publish a version and are not known to have ended.
                                     Where the latest version is an erasure, `erased` instead of `json` and `entities`
    bb:{<bucket>}:e:<document>       hash: position of the last erasure, also where a later version is stored
    bb:{<bucket>}:i:<document>       set of the index keys under which the document may be found; `swept` of the
                                     document counts how often those of no use were removed
    bb:{<bucket>}:s:<document>       see shared.backends.segment_traces
    bb:{<bucket>}:n                  hash of counters: `documents`, `entities`
    bb:m:{<text>}, bb:m:{<text>}:<type>  ids of the documents that mention a text (as a type), by time of writing
    bb:s:{<segment>}                 a cached segment, opaque bytes
    bb:keys                          see shared.backends.agreement

`<document>`, `<version>`, `<text>` and `<segment>` are digests: keys contain no clinical text. The bucket is the first
two hex digits of the document's digest, so a document and its counters share a slot and change atomically. With
encryption (shared.backends.vault) `json` and segments are sealed, digests are keyed, and members of the index are
digests. What scripts compare is not sealed: versions, positions, counts.

The index is a hint: readers check every mention against the document's result, so answers are correct even if a writer
died half-way. An erasure needs more: an index key is in the document's set before the document can be found under it,
and whoever comes too late for its result to be written removes what it has put there.

By default results do not expire and segments do: with `maxmemory-policy volatile-lru` a full server evicts segments and
never results. Segments may be on a server of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import redis
from redis.exceptions import (
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

from shared.backends.agreement import Agreement
from shared.backends.mention_index import SETTLED_MS, MentionIndex
from shared.backends.redis_login import login, refusal
from shared.backends.result_scripts import ERASE, PUBLISHED, PUT, RESERVE, SWEEP, SWEPT
from shared.backends.segment_traces import SegmentTraces
from shared.backends.stored_results import (
    StoredResults,
    beside,
    counter_key,
    document_key,
    member_key,
    parts,
    position,
    result_place,
    segment_key,
)
from shared.backends.vault import PLAIN, SealError, Vault, vault
from shared.errors import StoreError
from shared.messages import Erasure, Extraction, Mention, SourcePosition
from shared.settings import Settings

_BUCKETS = tuple(f"{n:02x}" for n in range(256))
_PAGE = 100
_SCAN = 1000
# The result of a 10 MB document is a few MB; a server that takes longer than this for one is stuck.
_SOCKET_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0

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

    outcome: Literal["written", "unchanged", "superseded", "erased"]  # superseded by an erasure
    unpublished: Extraction | Erasure | None  # what is stored, where it has to be published (again)


class ResultStore:
    """The store of one deployment. Thread-safe; every method may block on the network and raise :class:`StoreError`."""

    def __init__(
        self,
        client: Any,
        cache: Any = None,
        *,
        result_ttl: int = 0,
        segment_ttl: int = 0,
        erasure_ttl: int = 0,
        vault: Vault = PLAIN,
        with_text: bool = True,
    ) -> None:
        """``client``: a redis-py client that returns bytes; times to live in seconds, 0 for no expiry.

        ``cache``: one for the cached segments, if they are on a server of their own. ``with_text``: see `store_text`.
        """
        self._client = client
        self._cache = client if cache is None else cache
        self._vault = vault
        self._with_text = with_text
        self._form = StoredResults(vault, with_text=with_text)
        self._agreement = Agreement(client, vault, self._samples)
        self._result_ttl = result_ttl
        self._segment_ttl = segment_ttl
        self._erasure_ttl = erasure_ttl
        self._index = MentionIndex(client, result_ttl, vault)
        self._traces = SegmentTraces(client, self._cache, segment_ttl)
        self._reserve = client.register_script(RESERVE)
        self._write = client.register_script(PUT)
        self._erase = client.register_script(ERASE)
        self._note = client.register_script(PUBLISHED)
        self._begin_sweep = client.register_script(SWEEP)
        self._end_sweep = client.register_script(SWEPT)

    @classmethod
    def from_settings(cls, settings: Settings) -> ResultStore:
        """The store that the settings name. StoreError where its keys are not those of ``encryption_keys``."""
        client = connect(settings)
        cache = connect(settings, cache=True) if settings.redis_cache.get_secret_value() else None
        store = cls(
            client,
            cache,
            result_ttl=settings.result_ttl,
            segment_ttl=settings.segment_ttl,
            erasure_ttl=settings.erasure_ttl,
            vault=vault(settings),
            with_text=settings.store_text == "all",
        )
        with translated():
            store._agreement.check_at_start()
        return store

    def put(self, extraction: Extraction, *, published: bool = False) -> Write:
        """Write a result and index its mentions, unless one at a later source position is stored.

        One at the same position is replaced if its key differs, as after a change of the model; with the same key
        nothing changes. Once this returns, or the result can be read, its mentions are indexed.

        Whoever publishes results publishes ``unpublished``, then calls :meth:`published`, until nothing is left. That
        makes the newest result the last one published, whatever other writers do meanwhile and wherever one dies: its
        record is not committed, so it is given to the store again, which knows that its publication was left open.

        ``published``: the result comes from where results are published.
        """
        document = document_key(extraction.document_id, self._vault)
        version, place = self._form.version(extraction), parts(extraction.source)
        new = self._form.index_keys(extraction)
        expires = self._result_ttl and self._result_ttl + SETTLED_MS // 1000
        value, entities = self._form.write(extraction, document), len(extraction.entities)
        with self._used():
            outcome: bytes = b"again"
            while outcome == b"again":
                swept = self._reserve(keys=[document, beside(document, "i")], args=[version, *place, expires, *new])
                if swept is not None:  # else it is not written, most likely: no need to index it
                    self._index.add(extraction.document_id, new)
                outcome, stored = self._write(
                    keys=[document, counter_key(document), beside(document, "e")],
                    args=[version, value, entities, self._result_ttl, *place, int(published), swept or b"-"],
                )
            if outcome == b"written":
                if stored is not None:
                    self._sweep(extraction.document_id, new | (self._form.index_keys_in(stored, document) or set()))
                return Write("written", None if published else extraction)
            if outcome != b"unchanged":
                self._sweep(extraction.document_id, new)
            if outcome == b"erased":
                self._traces.remove(beside(document, "s"))
            unpublished: Extraction | Erasure | None
            if published or stored is None:
                unpublished = None
            elif outcome == b"unchanged" and not self._with_text:  # what is stored is this, without its text
                unpublished = extraction
            else:
                unpublished = self._form.newest(extraction.document_id, document, stored)
        return Write(outcome.decode(), unpublished)  # type: ignore[arg-type]

    def erase(self, erasure: Erasure, *, published: bool = False) -> Write:
        """Removes what is here of a document up to a position, with its cached segments, and leaves a mark of that.

        The mark takes the place of a version: earlier ones, and one at the same position, are not stored any more, and
        it is published, as :meth:`put` says. It has no text, and expires after ``erasure_ttl``. A later version stays,
        and may lose cached segments, which costs time only. ``unpublished`` of a mark is an :class:`Erasure`.
        """
        document = document_key(erasure.document_id, self._vault)
        with self._used():
            outcome, stored = self._erase(
                keys=[document, counter_key(document), beside(document, "e")],
                args=[self._form.version(erasure), self._erasure_ttl, *parts(erasure.source), int(published)],
            )
            written = outcome == b"written"
            replaced = self._form.index_keys_in(stored, document) if written and stored is not None else None
            self._sweep(erasure.document_id, replaced or set())
            self._traces.remove(beside(document, "s"))
        if published or written:
            return Write(outcome.decode(), None if published else erasure)
        return Write(outcome.decode(), self._form.newest(erasure.document_id, document, stored))

    def erased(self, document_id: str, source: SourcePosition) -> bool:
        """Whether a document was erased at this position or later. Then its cached segments are removed once more."""
        document = document_key(document_id, self._vault)
        with self._used():
            mark = self._client.hmget(beside(document, "e"), "topic", "topic_id", "partition", "offset", "time")
            gone = mark[0] is not None and not source.later_than(position(mark))
            if gone:
                self._traces.remove(beside(document, "s"))
        return gone

    def published(self, own: Extraction | Erasure, what: Extraction | Erasure) -> Extraction | Erasure | None:
        """Note that ``what`` was published where :meth:`put` or :meth:`erase` of ``own`` asked for it.

        Returns what has to be published now, since a later one was stored meanwhile; None if the newest one is out.
        """
        key = document_key(own.document_id, self._vault)
        with self._used():
            newest = self._note(keys=[key], args=[self._form.version(own), self._form.version(what)])
        if newest == 0:  # the server lost it
            return (self.erase(own) if isinstance(own, Erasure) else self.put(own)).unpublished
        return None if newest == 1 else self._form.newest(own.document_id, key, newest)

    def get(self, document_id: str) -> Extraction | None:
        """The newest result of a document. StoreError where another version of biobracket wrote it."""
        with self._used():
            raw = self._client.hget(document_key(document_id, self._vault), "json")
        if raw is None:
            return None
        extraction = self._form.read(raw, document_key(document_id, self._vault))
        if extraction is None:
            raise StoreError(
                "redis: the stored result is not of this version of biobracket; process the document again, "
                "or set BIOBRACKET_REDIS to a database of this version",
                retryable=False,
            )
        return extraction

    def newest(self, document_ids: Sequence[str]) -> list[Extraction | Erasure | None]:
        """The newest result of each document, or its erasure; None where none is of this version of biobracket."""
        with self._used():
            return self._newest([(id_, document_key(id_, self._vault)) for id_ in document_ids])

    def results(self) -> Iterator[Extraction]:
        """Every stored result, in no order; those of another version of biobracket are left out.

        What is written meanwhile may be missing.
        """
        with self._used():
            keys = self._client.scan_iter(match="bb:{??}:d:*", count=_SCAN)
            while some := list(islice(keys, _PAGE)):
                with self._client.pipeline(transaction=False) as pipe:
                    for key in some:
                        pipe.hget(key, "json")
                    found = pipe.execute()
                for key, raw in zip(some, found, strict=True):
                    if raw is not None and (each := self._form.read(raw, key.decode())) is not None:
                        yield each

    def mentions(self, text: str, type: str | None = None, limit: int = 100) -> list[Mention]:
        """At most ``limit`` mentions of a text, most recently written documents first.

        Case and surrounding white space are ignored. ``type``: a canonical key, or None for all types.
        """
        with self._used():
            return self._index.find(
                text, type, limit, lambda members: self._newest([(m, member_key(m, self._vault)) for m in members])
            )

    def get_segments(self, keys: Sequence[str]) -> list[bytes | None]:
        """The cached bytes of each key, in the order of ``keys``; None where there are none that can be opened."""
        if not keys or not self._with_text:
            return [None] * len(keys)
        names = [segment_key(key, self._vault) for key in keys]
        with self._used(), self._cache.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.get(name)
            found = pipe.execute()
        return [None if raw is None else self._opened(raw, name) for raw, name in zip(found, names, strict=True)]

    def put_segments(self, segments: Mapping[str, bytes]) -> None:
        """Caches the bytes of each key for ``segment_ttl`` seconds; nothing where no text is kept."""
        if not segments or not self._with_text:
            return
        with self._used(), self._cache.pipeline(transaction=False) as pipe:
            for key, value in segments.items():
                name = segment_key(key, self._vault)
                pipe.set(name, self._vault.seal(value, name), ex=self._segment_ttl or None)
            pipe.execute()

    def trace_segments(self, document_id: str, keys: Sequence[str]) -> None:
        """Notes that what is cached under these keys holds text of a document."""
        with self._used():
            names = [segment_key(key, self._vault) for key in keys]
            self._traces.note(beside(document_key(document_id, self._vault), "s"), names)

    def removals(self) -> int:
        """Changes whenever cached segments are removed; what is cached elsewhere then has to go as well."""
        with self._used():
            return self._traces.removals()

    def counts(self) -> dict[str, int]:
        """``documents`` and ``entities`` of the newest results; with ``result_ttl``, expired ones still count."""
        with self._used(), self._client.pipeline(transaction=False) as pipe:
            for bucket in _BUCKETS:
                pipe.hmget(f"bb:{{{bucket}}}:n", "documents", "entities")
            counters = pipe.execute()
        return {
            "documents": sum(int(documents or 0) for documents, _ in counters),
            "entities": sum(int(entities or 0) for _, entities in counters),
        }

    def ping(self) -> None:
        """Raises StoreError if the store cannot be reached."""
        with self._used():
            self._client.ping()

    def close(self) -> None:
        """Closes the connections."""
        with translated():
            self._client.close()
            if self._cache is not self._client:
                self._cache.close()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """As :func:`translated`, once it is known that the store's keys are this process's."""
        with translated():
            self._agreement.check()
            yield

    def _newest(self, documents: Sequence[tuple[str, str]]) -> list[Extraction | Erasure | None]:
        """The newest of each document, by id and key."""
        with self._client.pipeline(transaction=False) as pipe:
            for _, key in documents:
                pipe.hmget(key, "json", "erased", "topic", "topic_id", "partition", "offset", "time")
            found = pipe.execute()
        return [
            self._form.newest(document_id, key, place if erased else raw)
            for (document_id, key), (raw, erased, *place) in zip(documents, found, strict=True)
        ]

    def _opened(self, raw: bytes, name: str) -> bytes | None:
        try:
            return self._vault.open(raw, name)
        except SealError:  # damaged, or of a key that is gone: it is made again
            return None

    def _samples(self) -> Iterator[tuple[bytes, str]]:
        """A stored value and its place, if there is one: of a store whose keys were not noted."""
        for key in self._client.scan_iter(match="bb:{??}:d:*", count=_SCAN):
            if (raw := self._client.hget(key, "json")) is not None:
                yield raw, result_place(key.decode())
                return

    def _sweep(self, document_id: str, also: set[str]) -> None:
        """Removes a document from where its newest result does not mention it: its index keys, and ``also`` these.

        A later version may be about to be stored, and be found there. It reserves its index keys again where a sweep
        began or ended meanwhile; and where it is stored before the sweep has ended, the sweep puts back what it took.
        """
        document = document_key(document_id, self._vault)
        keys = [document, beside(document, "i")]
        taken: set[str] = set()
        while True:
            version, raw, noted = self._begin_sweep(keys=keys)
            kept = set() if raw is None else self._form.index_keys_in(raw, document)
            if kept is None:  # of another version of biobracket, which knows what it has
                return
            stale = ({key.decode() for key in noted} | also) - kept
            back = taken & kept
            if not stale and not back:
                return
            self._index.add(document_id, back)
            self._index.remove(document_id, stale)
            taken |= stale
            if self._end_sweep(keys=keys, args=[version or b"", *stale]):
                return


def connect(settings: Settings, *, cache: bool = False) -> Any:
    """A redis-py client for ``redis`` and ``redis_cluster``; with ``cache`` for ``redis_cache``. Raises StoreError."""
    factory = redis.RedisCluster if settings.redis_cluster and not cache else redis.Redis
    with translated():
        try:
            url, options = login(settings, cache=cache)
            return factory.from_url(
                url,
                **options,
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
        if (refused := refusal(error)) is not None:
            raise refused from None
        raise StoreError(
            f"redis: {type(error).__name__}; check that BIOBRACKET_REDIS names a running server and its password, and "
            "BIOBRACKET_REDIS_CLUSTER whether it is a cluster, or start the embedded one with `biobracket up`",
            retryable=isinstance(error, _RETRYABLE),
        ) from None
