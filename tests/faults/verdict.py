"""What became of the documents, seen from outside: from Redis, from the topics, and from the group's offsets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from services.ingest.admission import admit
from shared.backends.records import Record
from shared.backends.result_store import ResultStore
from shared.backends.streams.scan import Scan
from shared.errors import DocumentError
from shared.messages import Document, Extraction, SourcePosition
from shared.settings import Settings

_LOOKED_UP = 50  # documents that are looked up by their mentions


@dataclass(frozen=True)
class Verdict:
    """Counts of documents by id. All but ``dead`` and ``repeated`` have to be 0."""

    lost: int = 0  # the last version is neither in both places nor a dead letter, or cannot be found by its mentions
    stale: int = 0  # an earlier version is served, or comes last on the topic of entities
    doubled: int = 0  # published or counted as two different results of one record
    dead: int = 0  # the last version is a dead letter
    repeated: int = 0  # records that were published again as they were: the key tells, nobody is misled

    @property
    def right(self) -> bool:
        return not (self.lost or self.stale or self.doubled)


def judge(
    settings: Settings,
    expected: dict[str, Document],
    everything: dict[str, Document],
    entities: Iterable[bytes] | None = None,
) -> Verdict:
    """``expected``: the last versions that are judged; ``everything``: all that the store should count; ``entities``:
    records of that topic as another client has read them, in the order of each partition.
    """
    with closing(ResultStore.from_settings(settings)) as store:
        ids = list(expected)
        stored = dict(zip(ids, store.newest(ids), strict=True))
        counts = store.counts()
        whole = store.newest(list(everything))
        unindexed = _unindexed(store, [one for one in stored.values() if one is not None][-_LOOKED_UP:])
    published: dict[str, list[Extraction]] = {}
    if entities is None:
        entities = (record.value or b"" for record in _records(settings, settings.topic_entities))
    for value in entities:
        extraction = Extraction.model_validate_json(value)
        if extraction.document_id in expected:
            published.setdefault(extraction.document_id, []).append(extraction)
    dead = _dead(settings)
    tally: Counter[str] = Counter(lost=unindexed)
    for id_, document in expected.items():
        here, there = stored[id_], published.get(id_, [])
        if here is None or not there:
            # Of a document that has a result, an earlier version must not be what is served: stale, dead letter or not.
            tally["dead" if here is None and not there and (id_, document.sha256) in dead else "lost"] += 1
            continue
        tally["stale"] += here.text_sha256 != document.sha256 or there[-1].text_sha256 != document.sha256
        results: dict[SourcePosition | None, set[str]] = {}
        for each in there:
            results.setdefault(each.source, set()).add(each.key)
        tally["doubled"] += any(len(keys) > 1 for keys in results.values())
        tally["repeated"] += len(there) - len(results)
    kept = [each for each in whole if each is not None]
    if counts != {"documents": len(kept), "entities": sum(len(each.entities) for each in kept)}:
        tally["doubled"] += 1
    return Verdict(**tally)


def _records(settings: Settings, topic: str) -> Iterator[Record]:
    with closing(Scan(settings, topic)) as scan:
        for records in scan.read():
            yield from records


def _unindexed(store: ResultStore, results: list[Extraction]) -> int:
    """How many of the results cannot be found by one of their mentions."""
    return sum(
        any(
            one.document_id not in {m.document_id for m in store.mentions(entity.text, entity.type, limit=1_000_000)}
            for entity in one.entities
        )
        for one in results
    )


def _dead(settings: Settings) -> set[tuple[str, str]]:
    """Id and text of the documents among the dead letters, also of those inside a batch that could not be read."""
    found = set()
    for record in _records(settings, settings.topic_dead_letters):
        for value in _documents(record.value or b""):
            try:
                document = admit(value)
            except DocumentError:
                continue
            found.add((document.id, document.sha256))
    return found


def _documents(value: bytes) -> Iterator[bytes]:
    """The JSON objects in a record, or among the bytes of an uncompressed batch."""
    if value.startswith(b"{"):
        yield value
        return
    text = value.decode("utf-8", errors="replace")
    at = text.find("{")
    while at >= 0:
        try:
            _, end = json.JSONDecoder().raw_decode(text, at)
            yield text[at:end].encode()
        except ValueError:
            end = at + 1
        at = text.find("{", end)
