"""The feedback store, on one Valkey server and on a cluster of three."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from shared.backends.feedback_store import FeedbackStore
from shared.errors import DocumentError, StoreError
from shared.selection.feedback import Feedback, NewFeedback
from shared.settings import Settings
from tests.support.servers import Target

TEXT = "The patient was kept in a cold room."


def new_feedback(**fields: object) -> NewFeedback:
    return NewFeedback.model_validate(
        {"text": TEXT, "start": 26, "end": 30, "type": "disease", "accepted": False} | fields
    )


def feedback(id_: str, at: float = 1.0, **fields: object) -> Feedback:
    return new_feedback(id=id_, time=at, **fields).feedback(now=0.0)


@pytest.fixture
def store(target: Target) -> Iterator[FeedbackStore]:
    target.everywhere("FLUSHALL")
    made = FeedbackStore.from_settings(target.settings)
    yield made
    made.close()


def ids(store: FeedbackStore) -> list[str]:
    return [each.id for each in store.page().feedback]


def test_later_feedback_counts_and_repeated_feedback_does_not(store: FeedbackStore) -> None:
    assert store.version() == 0
    assert store.put(feedback("a", 1.0))
    assert not store.put(feedback("a", 1.0))
    assert store.put(feedback("a", 2.0, accepted=True))
    assert not store.put(feedback("a", 1.5))
    assert store.version() == 2
    (kept,) = store.page().feedback
    assert (kept.accepted, kept.time) == (True, 2.0)


def test_withdrawn_feedback_does_not_return(store: FeedbackStore) -> None:
    store.put(feedback("a", 5.0))
    assert store.undo("a", at=6.0)
    assert not store.undo("a")
    assert not store.undo("b")
    assert not store.put(feedback("a", 5.0))  # a record read twice
    assert ids(store) == []
    assert store.put(feedback("a", 7.0))
    assert not store.undo("a", at=6.0)  # so is this
    assert ids(store) == ["a"]
    assert store.undo("a")
    assert ids(store) == []


def test_feedback_withdrawn_before_it_arrives_is_refused(store: FeedbackStore) -> None:
    assert store.undo("a", at=6.0)
    assert not store.undo("a", at=6.0)
    assert not store.put(feedback("a", 5.0))
    assert ids(store) == []
    assert store.changes().gone == ("a",)


def test_feedback_from_the_future_can_be_withdrawn(store: FeedbackStore) -> None:
    store.put(feedback("a", 9e10))
    assert store.undo("a")
    assert not store.put(feedback("a", 9e10))


def test_pages_hold_everything_newest_first(store: FeedbackStore) -> None:
    for n in range(7):
        store.put(feedback(str(n)))
    store.undo("3")
    store.put(feedback("0", 2.0))
    found, before = [], None
    while True:
        page = store.page(limit=2, before=before)
        found.append([each.id for each in page.feedback])
        before = page.next
        if before is None:
            break
    assert found == [["0", "6"], ["5", "4"], ["2", "1"]]


@pytest.mark.parametrize("page", [2, 500])
def test_changes_since_a_version_are_complete(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr("shared.backends.feedback_store._PAGE", page)
    for n in range(5):
        store.put(feedback(str(n)))
    first = store.changes()
    assert ([each.id for each in first.given], first.gone, first.version) == (["0", "1", "2", "3", "4"], (), 5)
    store.undo("1")
    store.put(feedback("2", 2.0, accepted=True))
    later = store.changes(first.version)
    assert ([each.id for each in later.given], later.gone, later.version) == (["2"], ("1",), 7)
    assert store.changes(later.version).given == ()
    assert ids(store) == ["2", "4", "3", "0"]


def test_an_emptied_store_is_noticed(store: FeedbackStore, target: Target) -> None:
    for n in range(3):
        store.put(feedback(str(n)))
    target.everywhere("FLUSHALL")
    store.put(feedback("new"))
    changes = store.changes(3)
    assert changes.restarted
    assert [each.id for each in changes.given] == ["new"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 5), st.booleans()), max_size=12))
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_following_the_changes_gives_what_is_stored(target: Target, history: list[tuple[str, bool, int, bool]]) -> None:
    target.everywhere("FLUSHALL")
    store = FeedbackStore.from_settings(target.settings)
    known: dict[str, Feedback] = {}
    version = 0
    for id_, undo, at, learn in [*history, ("a", True, 0, True)]:
        if undo:
            store.undo(id_, float(at))
        else:
            store.put(feedback(id_, float(at)))
        if learn:
            changes = store.changes(version)
            known |= {each.id: each for each in changes.given}
            for gone in changes.gone:
                known.pop(gone, None)
            version = changes.version
    assert {each.id: each for each in store.page().feedback} == known
    store.close()


def test_an_unreachable_store_names_the_setting() -> None:
    away = FeedbackStore.from_settings(Settings(redis=SecretStr("redis://127.0.0.1:1")))
    with pytest.raises(StoreError, match="BIOBRACKET_REDIS"):
        away.version()


def test_feedback_is_erased_with_its_document(store: FeedbackStore, target: Target) -> None:
    store.put(feedback("a", 1.0, document_id="病历/1"))
    store.put(feedback("b", 9.0, document_id="病历/1"))
    store.put(feedback("c", 1.0, document_id="other"))
    store.put(feedback("moved", 1.0, document_id="病历/1"))
    store.put(feedback("moved", 2.0, document_id="other"))
    store.put(feedback("d", 1.0))
    before = store.version()
    assert store.erase("病历/1", at=5.0) == 1
    assert sorted(ids(store)) == ["b", "c", "d", "moved"]
    assert store.changes(before).gone == ("a",)
    # In whatever order they arrive: what was given before the erasure stays away, also under a new id.
    for id_ in ("a", "new"):
        assert not store.put(feedback(id_, 4.0, document_id="病历/1"))
    assert store.put(feedback("new", 6.0, document_id="病历/1"))
    assert store.erase("病历/1", at=5.0) == 0
    assert store.erase("never there", at=5.0) == 0
    assert store.erase("病历/1", at=10.0) == 2
    assert sorted(ids(store)) == ["c", "d", "moved"]
    assert not [key for key in target.client.scan_iter(match="bb:{feedback}:*") if "病历".encode() in key]


def test_what_is_left_of_erased_feedback_expires(target: Target) -> None:
    target.everywhere("FLUSHALL")
    store = FeedbackStore.from_settings(target.settings.model_copy(update={"erasure_ttl": 100}))
    for id_ in ("a", "again"):
        store.put(feedback(id_, 1.0, document_id="one"))
    assert store.erase("one", at=5.0) == 2
    (mark,) = target.client.scan_iter(match="bb:{feedback}:erased:*")
    assert 0 < target.client.ttl(mark) <= 100
    store.put(feedback("again", 7.0, document_id="one"))
    # As if it had been long ago.
    target.client.zadd("bb:{feedback}:gone", {store._member(id_): 1 for id_ in ("a", "again")})
    store.erase("another", at=5.0)
    assert target.client.hkeys("bb:{feedback}:items") == [store._member("again")]
    assert target.client.zrange("bb:{feedback}:changes", 0, -1) == [store._member("again")]
    assert not target.client.exists("bb:{feedback}:gone")
    assert ids(store) == ["again"]
    store.close()


def test_feedback_expires_by_the_time_it_was_given(target: Target) -> None:
    target.everywhere("FLUSHALL")
    store = FeedbackStore.from_settings(target.settings.model_copy(update={"feedback_ttl": 3600}))
    now = time.time()
    for id_, at in (("old", now - 3700), ("young", now - 3500), ("undone", now - 3700)):
        store.put(feedback(id_, at))
    store.undo("undone")
    assert ids(store) == ["young", "old"]
    before = int(target.client.get("bb:{feedback}:version"))
    again = FeedbackStore.from_settings(target.settings.model_copy(update={"feedback_ttl": 3600}))
    again.expire()
    assert again.version() == before + 1
    assert 0 < target.client.ttl("bb:{feedback}:expiring") <= 3600
    assert ids(again) == ["young"]
    assert not again.put(feedback("old", now - 3700))  # a record read twice
    assert again.put(feedback("old", now))
    changed = again.version()
    store.expire()
    assert store.version() == changed  # somebody has looked within the hour
    for each in (store, again):
        each.close()


def test_without_text_there_is_no_feedback(target: Target) -> None:
    target.everywhere("FLUSHALL")
    store = FeedbackStore.from_settings(target.settings.model_copy(update={"store_text": "none"}))
    with pytest.raises(DocumentError, match="BIOBRACKET_STORE_TEXT"):
        store.put(feedback("a"))
    assert ids(store) == []
    assert not store.undo("a")
    store.close()
