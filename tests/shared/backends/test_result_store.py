"""The same contract on a single Valkey server and on a cluster of three."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from services.embedded.servers import Valkey
from shared.backends import mention_index
from shared.backends.mention_index import keys_of
from shared.backends.result_store import ResultStore, Write
from shared.backends.stored_results import document_key, result_place
from shared.errors import StoreError
from shared.messages import Entity, Extraction, SourcePosition, entity_id
from shared.settings import Settings
from tests.support.servers import Target

Make = Callable[..., ResultStore]


@pytest.fixture
def make(target: Target) -> Iterator[Make]:
    """Makes stores on an empty server; keywords are settings."""
    target.everywhere("FLUSHALL")
    made: list[ResultStore] = []

    def store(**update: Any) -> ResultStore:
        made.append(ResultStore.from_settings(target.settings.model_copy(update=update)))
        return made[-1]

    yield store
    for one in made:
        one.close()


@pytest.fixture
def store(make: Make) -> ResultStore:
    return make()


def _at(offset: int, partition: int = 0, time: int = 0, topic_id: str = "") -> SourcePosition:
    return SourcePosition(topic="t", topic_id=topic_id, partition=partition, offset=offset, timestamp_ms=time)


def _extraction(
    document_id: str, revision: str, *mentions: tuple[str, str], source: SourcePosition | None = None
) -> Extraction:
    entities = []
    start = 0
    for text, type_ in mentions:
        end = start + len(text)
        entities.append(
            Entity(
                id=entity_id(type_, start, end),
                start=start,
                end=end,
                text=text,
                type=type_,
                confidence=0.9,
                generator_confidence=0.8,
            )
        )
        start = end + 1
    return Extraction(
        document_id=document_id,
        text_sha256="0" * 64,
        lang="en",
        types=("disease", "protein"),
        entities=tuple(entities),
        source=source,
        model_revision=revision,
    )


def _publish(store: ResultStore, extraction: Extraction, topic: list[str]) -> None:
    """What a publisher does: the revisions as they are published, one after the other."""
    newest = store.put(extraction).unpublished
    while newest is not None:
        topic.append(newest.model_revision)
        newest = store.published(extraction, newest)


def test_a_stored_result_can_be_read(store: ResultStore) -> None:
    extraction = _extraction("病历 1", "r1", ("右肺腺癌", "disease"), ("CD28", "protein"))
    assert store.get("病历 1") is None
    assert store.put(extraction) == Write("written", extraction)
    assert store.get("病历 1") == extraction


def test_writing_is_idempotent(store: ResultStore, target: Target) -> None:
    extraction = _extraction("d", "r1", ("cancer", "disease"))
    assert store.put(extraction).outcome == "written"
    keys = sorted(target.keys())
    assert store.put(extraction) == Write("unchanged", extraction)
    assert sorted(target.keys()) == keys
    assert store.counts() == {"documents": 1, "entities": 1}
    assert len(store.mentions("cancer")) == 1


def test_a_newer_result_replaces_the_older(store: ResultStore, target: Target) -> None:
    old = _extraction("d", "r1", ("cancer", "disease"), ("CD28", "protein"))
    new = _extraction("d", "r2", ("CD28", "protein"))
    store.put(old)
    store.put(new)
    assert store.get("d") == new
    assert store.mentions("cancer") == []
    assert [mention.entity for mention in store.mentions("CD28")] == list(new.entities)
    assert store.counts() == {"documents": 1, "entities": 1}
    assert len([key for key in target.keys() if key.startswith(b"bb:m:")]) == 2  # noqa: SIM118 - not a dict


def test_the_result_at_the_later_position_stays(store: ResultStore) -> None:
    old = _extraction("d", "r1", ("cancer", "disease"), source=_at(1))
    new = _extraction("d", "r1", ("tumour", "disease"), source=_at(2))
    store.put(new)
    assert store.put(old) == Write("superseded", None)
    assert store.get("d") == new
    assert store.mentions("cancer") == []
    assert store.counts() == {"documents": 1, "entities": 1}
    again = old.model_copy(update={"source": _at(3)})  # the text was changed back
    assert store.put(again).outcome == "written"
    assert store.get("d") == again


@given(
    places=st.lists(
        st.builds(_at, st.integers(0, 3), st.integers(0, 2), st.integers(0, 3), st.sampled_from(["", "a", "b"])),
        min_size=1,
        max_size=6,
    )
)
@hypothesis_settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_positions_compare_on_the_server_as_here(target: Target, places: list[SourcePosition]) -> None:
    target.everywhere("FLUSHALL")
    store = ResultStore.from_settings(target.settings)
    newest: SourcePosition | None = None
    for place in places:
        written = store.put(_extraction("d", "r", source=place)).outcome
        later = newest is not None and newest.later_than(place)
        assert written == ("unchanged" if newest == place else "superseded" if later else "written")
        if not later:
            newest = place
        (stored,) = store.newest(["d"])
        assert stored is not None
        assert stored.source == newest
    store.close()


def test_a_result_without_a_position_is_earlier_than_any_with_one(store: ResultStore) -> None:
    placed = _extraction("d", "r1", source=_at(0))
    assert store.put(_extraction("d", "r0")).outcome == "written"
    assert store.put(placed).outcome == "written"
    assert store.put(_extraction("d", "r2")) == Write("superseded", None)
    assert store.get("d") == placed


def test_another_model_may_replace_a_result_at_the_same_position(store: ResultStore) -> None:
    topic: list[str] = []
    for revision in ("r1", "r2", "r1"):
        _publish(store, _extraction("d", revision, source=_at(5)), topic)
    assert topic == ["r1", "r2", "r1"]
    _publish(store, _extraction("d", "r1", source=_at(5)), topic)
    assert topic == ["r1", "r2", "r1"]
    assert store.get("d") == _extraction("d", "r1", source=_at(5))


def test_a_late_publisher_publishes_what_is_newest(store: ResultStore) -> None:
    old, new = (_extraction("d", revision, source=_at(n)) for n, revision in enumerate(("old", "new")))
    assert store.put(old).unpublished == old
    _publish(store, new, [])
    assert store.published(old, old) == new
    assert store.published(old, new) is None
    # It died with the old one on its way, and is given its record again.
    assert store.put(old) == Write("superseded", None)


def test_a_publication_left_open_is_made_good(store: ResultStore) -> None:
    old, new = (_extraction("d", revision, source=_at(n)) for n, revision in enumerate(("old", "new")))
    store.put(old)
    _publish(store, new, [])
    for _ in range(2):  # by whoever is given its record, since what the dead one sent last may come last
        assert store.put(old) == Write("superseded", new)
        assert store.published(old, new) is None
    # One that died before it noted the publication of the newest publishes that again.
    newer = _extraction("d", "newer", source=_at(2))
    store.put(newer)
    assert store.put(newer) == Write("unchanged", newer)


def test_a_publication_is_open_while_one_of_its_publishers_is_at_it(store: ResultStore) -> None:
    old, new = (_extraction("d", revision, source=_at(n)) for n, revision in enumerate(("old", "new")))
    assert [store.put(old).outcome for _ in range(3)] == ["written", "unchanged", "unchanged"]
    assert store.published(old, old) is None
    assert store.put(old) == Write("unchanged", None)
    _publish(store, new, [])
    # One of two that still send the old one noted it; the other dies, and its record goes to another.
    assert store.published(old, old) == new
    assert store.published(old, new) is None
    assert store.put(old) == Write("superseded", new)


def test_a_publication_noted_by_an_earlier_release(store: ResultStore, target: Target) -> None:
    old, new = (_extraction("d", revision, source=_at(n)) for n, revision in enumerate(("old", "new")))
    store.put(old)
    key = document_key("d", store._vault)
    (open_,) = (name for name in target.client.hkeys(key) if name.startswith(b"open:"))
    target.client.hset(key, open_, "")
    _publish(store, new, [])
    assert store.put(old) == Write("superseded", new)
    assert target.client.hget(key, open_) == b"2"


def test_a_result_that_the_server_lost_is_written_again(store: ResultStore, target: Target) -> None:
    extraction = _extraction("d", "r", ("fever", "disease"), source=_at(0))
    store.put(extraction)
    target.everywhere("FLUSHALL")
    assert store.published(extraction, extraction) == extraction
    assert store.published(extraction, extraction) is None
    assert store.get("d") == extraction
    assert len(store.mentions("fever")) == 1


def test_old_versions_leave_nothing_behind(store: ResultStore, target: Target) -> None:
    for n in range(50):
        _publish(store, _extraction("d", "r", (f"fever {n}", "disease"), source=_at(n)), [])
    assert len(target.keys()) == 5  # the document, its index keys and counters, and an index with and without type
    fields = target.client.hkeys(document_key("d", store._vault))
    assert not [name for name in fields if name.startswith(b"open:")]
    assert len(fields) == 10
    assert len(store.mentions("fever 49")) == 1


def test_results_of_a_topic_need_no_publication(store: ResultStore) -> None:
    extraction = _extraction("d", "r", source=_at(0))
    assert store.put(extraction, published=True) == Write("written", None)
    assert store.put(extraction) == Write("unchanged", None)


def test_a_writer_that_was_overtaken_leaves_the_index_of_the_newest(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _extraction("d", "r", ("fever", "disease"), source=_at(0))
    middle = _extraction("d", "r", ("cough", "disease"), source=_at(1))
    last = _extraction("d", "r", ("fever", "disease"), source=_at(2))
    store.put(first)
    remove = store._index.remove

    def overtaken(document_id: str, keys: set[str]) -> None:
        monkeypatch.setattr(store._index, "remove", remove)
        store.put(last)
        remove(document_id, keys)

    monkeypatch.setattr(store._index, "remove", overtaken)
    store.put(middle)
    assert [mention.entity for mention in store.mentions("fever")] == list(last.entities)
    assert store.mentions("cough") == []


def test_the_newest_of_several_documents(store: ResultStore) -> None:
    older, newer = (_extraction("a", "r", source=_at(n)) for n in range(2))
    store.put(older)
    store.put(newer)
    assert store.newest(["b", "a"]) == [None, newer]
    assert store.newest([]) == []


def test_mentions_are_found_by_text_and_type(store: ResultStore) -> None:
    store.put(_extraction("a", "r", ("Lung Cancer", "disease"), ("lung cancer", "disease")))
    store.put(_extraction("b", "r", ("LUNG CANCER", "protein")))
    found = store.mentions("  lung cancer\n")
    assert [(mention.document_id, mention.entity.text) for mention in found] == [
        ("b", "LUNG CANCER"),
        ("a", "Lung Cancer"),
        ("a", "lung cancer"),
    ]
    assert {mention.document_id for mention in store.mentions("lung cancer", "disease")} == {"a"}
    assert store.mentions("lung") == []
    assert store.mentions("lung cancer", "dna") == []
    assert store.mentions("") == []


def test_mentions_respect_the_limit_across_pages(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mention_index, "_PAGE", 2)
    for n in range(7):
        store.put(_extraction(f"d{n}", "r", ("fever", "disease")))
    assert len(store.mentions("fever")) == 7
    assert len(store.mentions("fever", limit=5)) == 5
    assert store.mentions("fever", limit=0) == []


def test_a_writer_that_dies_half_way_leaves_nothing_visible_and_can_retry(store: ResultStore) -> None:
    extraction = _extraction("d", "r", ("fever", "disease"))
    store._index.add("d", keys_of(extraction, store._vault))
    assert store.mentions("fever") == []
    assert store.put(extraction).outcome == "written"
    assert len(store.mentions("fever")) == 1


def test_stale_entries_are_dropped_when_read(
    store: ResultStore, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._index.add("gone", keys_of(_extraction("gone", "r", ("fever", "disease")), store._vault))
    index = mention_index._key(store._vault.name("mention", "fever"), None)
    store.mentions("fever")
    assert target.client.zcard(index) == 1
    monkeypatch.setattr(mention_index, "SETTLED_MS", -1000)
    store.mentions("fever")
    assert target.client.zcard(index) == 0


def test_counts_are_exact_under_concurrent_writers(store: ResultStore) -> None:
    work = [
        _extraction(f"d{n}", "r", *[("fever", "disease")] * n, source=_at(offset))
        for n in range(12)
        for offset in (1, 2, 0)
        for _ in range(2)
    ]
    with ThreadPoolExecutor(8) as threads:
        outcomes = [write.outcome for write in threads.map(store.put, work)]
    assert 12 <= outcomes.count("written") <= 36
    assert all(
        store.get(f"d{n}") == _extraction(f"d{n}", "r", *[("fever", "disease")] * n, source=_at(2)) for n in range(12)
    )
    assert store.counts() == {"documents": 12, "entities": sum(range(12))}


def test_segments_are_cached_in_order(store: ResultStore) -> None:
    store.put_segments({f"s{n}": bytes([n, 0, 255]) for n in range(20)})
    assert store.get_segments(["s3", "absent", "s1"]) == [b"\x03\x00\xff", None, b"\x01\x00\xff"]
    assert store.get_segments([]) == []
    store.put_segments({})


def test_segments_can_be_on_a_server_of_their_own(target: Target, valkey: Valkey) -> None:
    target.everywhere("FLUSHALL")
    with redis.Redis.from_url(valkey.url) as other:
        own = target.settings.redis.get_secret_value() != valkey.url
        store = ResultStore.from_settings(target.settings.model_copy(update={"redis_cache": SecretStr(valkey.url)}))
        store.put_segments({"s": b"1"})
        assert store.get_segments(["s"]) == [b"1"]
        assert other.keys("bb:s:*")
        if own:
            assert target.keys() == []
        store.close()


def test_expiry_follows_the_settings(make: Make, target: Target) -> None:
    store = make(result_ttl=1000, segment_ttl=500)
    store.put(_extraction("d", "r", ("fever", "disease")))
    store.put_segments({"s": b"1"})
    for key in target.keys():  # noqa: SIM118 - not a dict
        ttl = target.client.ttl(key)
        if key.startswith(b"bb:s:"):
            assert 0 < ttl <= 500
        elif key.endswith(b":n"):
            assert ttl == -1
        else:
            assert 0 < ttl <= 1000 + 3600


def test_results_stay_for_good_by_default(store: ResultStore, target: Target) -> None:
    store.put(_extraction("d", "r", ("fever", "disease")))
    assert {target.client.ttl(key) for key in target.keys()} == {-1}  # noqa: SIM118 - not a dict


def test_keys_contain_no_text(store: ResultStore, target: Target) -> None:
    store.put(_extraction("patient", "r", ("fever", "disease")))
    store.put_segments({"a fever": b"1"})
    assert not [key for key in target.keys() if b"fever" in key or b"patient" in key]  # noqa: SIM118 - not a dict


def test_a_full_server_refuses_and_recovers(store: ResultStore, target: Target) -> None:
    extraction = _extraction("d", "r", ("fever", "disease"))
    target.everywhere("CONFIG", "SET", "maxmemory", "1")
    try:
        for write in (lambda: store.put(extraction), lambda: store.put_segments({"s": b"fever"})):
            with pytest.raises(StoreError, match="maxmemory") as full:
                write()
            assert full.value.retryable
            assert "fever" not in str(full.value)
    finally:
        target.everywhere("CONFIG", "SET", "maxmemory", "0")
    assert store.put(extraction).outcome == "written"
    assert store.counts() == {"documents": 1, "entities": 1}


def test_a_result_of_another_version_is_refused(store: ResultStore, target: Target) -> None:
    key = document_key("d", store._vault)
    target.client.hset(key, "json", store._vault.seal(b'{"v": 99, "text": "fever"}', result_place(key)))
    with pytest.raises(StoreError, match="version") as refused:
        store.get("d")
    assert not refused.value.retryable
    assert "fever" not in str(refused.value)
    assert store.put(_extraction("d", "r")).outcome == "written"
    assert store.get("d") == _extraction("d", "r")


def test_ping(store: ResultStore) -> None:
    assert store.ping() is None


def test_a_wrong_password_is_reported_without_quoting_it(target: Target) -> None:
    url = target.settings.redis.get_secret_value()
    wrong = url.replace(url.split(":")[2].split("@")[0], "secret-word")
    settings = target.settings.model_copy(update={"redis": SecretStr(wrong)})
    with pytest.raises(StoreError, match="BIOBRACKET_REDIS") as failed:
        ResultStore.from_settings(settings).ping()
    assert "secret-word" not in str(failed.value)


@pytest.mark.parametrize("cluster", [False, True])
def test_no_server_is_one_clear_error(cluster: bool) -> None:
    settings = Settings(redis=SecretStr("redis://:secret-word@127.0.0.1:1/0"), redis_cluster=cluster)
    with pytest.raises(StoreError, match="BIOBRACKET_REDIS") as failed:
        ResultStore.from_settings(settings).ping()
    assert failed.value.retryable
    assert "secret-word" not in str(failed.value)


def test_an_invalid_url_is_reported_without_quoting_it() -> None:
    with pytest.raises(StoreError, match="BIOBRACKET_REDIS") as failed:
        # Settings refuse most of it; what they let through is told here.
        ResultStore.from_settings(Settings().model_copy(update={"redis": SecretStr("secret-word@host")}))
    assert not failed.value.retryable
    assert "secret-word" not in str(failed.value)


def test_work_goes_on_after_a_restart(tmp_path: Path) -> None:
    with Valkey(tmp_path) as server:
        store = ResultStore.from_settings(Settings(redis=SecretStr(server.url)))
        extraction = _extraction("d", "r", ("fever", "disease"))
        store.put(extraction)
        server.stop()
        with pytest.raises(StoreError) as gone:
            store.get("d")
        assert gone.value.retryable
        again = Valkey(tmp_path, server.port)
        again.password = server.password
        with again:
            assert store.get("d") == extraction
            assert store.put(extraction).outcome == "unchanged"
            store.close()


@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["r1", "r2"]),
            st.integers(0, 3),
            st.lists(
                st.tuples(st.sampled_from(["Fever", "fever", "癌", "İ"]), st.sampled_from(["disease", "protein"])),
                max_size=4,
            ),
        ),
        max_size=8,
    )
)
def test_the_store_agrees_with_its_history(target: Target, history: list[Any]) -> None:
    target.everywhere("FLUSHALL")
    store = ResultStore.from_settings(target.settings)
    newest: dict[str, Extraction] = {}
    for document_id, revision, offset, mentions in history:
        extraction = _extraction(document_id, revision, *mentions, source=_at(offset))
        before = newest.get(document_id)
        outcome = store.put(extraction).outcome
        if before is not None and before.source is not None and before.source.offset > offset:
            assert outcome == "superseded"
        elif before is not None and (before.source, before.key) == (extraction.source, extraction.key):
            assert outcome == "unchanged"
        else:
            assert outcome == "written"
            newest[document_id] = extraction
    for document_id in "abc":
        assert store.get(document_id) == newest.get(document_id)
    assert store.counts() == {
        "documents": len(newest),
        "entities": sum(len(extraction.entities) for extraction in newest.values()),
    }
    for text in ("FEVER", "癌", "i̇"):
        for type_ in (None, "disease", "protein"):
            found = {(mention.document_id, mention.entity.id) for mention in store.mentions(text, type_)}
            assert found == {
                (extraction.document_id, entity.id)
                for extraction in newest.values()
                for entity in extraction.entities
                if entity.text.casefold() == text.casefold() and type_ in (None, entity.type)
            }
    store.close()
