"""What reviewers say, in a real store, and what it decides over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from services.embedded.servers import Valkey
from services.selection.feedback_overrides import FeedbackOverrides
from shared.backends.feedback_store import FeedbackStore
from shared.messages import Candidate, Segment
from shared.selection.feedback import Feedback, NewFeedback
from shared.settings import Settings


def candidate(text: str, mention: str, type_: str = "disease") -> Candidate:
    start = text.index(mention)
    return Candidate(
        segment=Segment(document_id="d", index=0, start=100, end=100 + len(text), text=text, lang="en"),
        type=type_,
        start=100 + start,
        end=100 + start + len(mention),
        text=mention,
        generator_confidence=0.9,
    )


def feedback(text: str, mention: str, *, accepted: bool, at: float = 1.0) -> Feedback:
    start = text.index(mention)
    given = NewFeedback(text=text, start=start, end=start + len(mention), type="disease", accepted=accepted, time=at)
    return given.feedback(now=at)


@pytest.fixture
def store(settings: Settings) -> Iterator[FeedbackStore]:
    made = FeedbackStore.from_settings(settings)
    yield made
    made.close()


def accepted(overrides: FeedbackOverrides, text: str, mention: str, type_: str = "disease") -> bool | None:
    overrides.refresh()
    return overrides.accepted(candidate(text, mention, type_))


ROOM = "After surgery the patient was kept in a cold room for 2 hours."


def test_a_rejected_mention_is_gone_and_its_near_copies(store: FeedbackStore) -> None:
    overrides = FeedbackOverrides(store)
    assert accepted(overrides, ROOM, "cold") is None
    store.put(feedback(ROOM, "cold", accepted=False))
    assert accepted(overrides, ROOM, "cold") is False
    assert accepted(overrides, "Before it the patient was kept in a COLD  room for 12 days.", "COLD") is False
    assert accepted(overrides, "She was kept in a cold room.", "cold") is False
    assert accepted(overrides, "She had a bad cold for 2 days.", "cold") is None  # other words around it
    assert accepted(overrides, ROOM, "cold room") is None  # another span
    assert accepted(overrides, ROOM, "cold", "symptom") is None  # another type


def test_numbers_do_not_tell_copies_apart(store: FeedbackStore) -> None:
    store.put(feedback("肝内见12mm病灶，边界清。", "12mm病灶", accepted=False))
    assert accepted(FeedbackOverrides(store), "肝内见7mm病灶，边界不清。", "7mm病灶") is False


def test_of_several_entries_the_nearest_counts_then_the_latest(store: FeedbackStore) -> None:
    store.put(feedback(ROOM, "cold", accepted=False))
    store.put(feedback("The patient was kept at home with a cold for 2 days.", "cold", accepted=True))
    overrides = FeedbackOverrides(store, near_copy=0.3)
    assert accepted(overrides, "He was kept in a cold room for 3 hours.", "cold") is False
    assert accepted(overrides, "He was kept at home with a cold for 3 days.", "cold") is True
    twice = feedback(ROOM, "cold", accepted=True, at=5.0).model_copy(update={"id": "of another reviewer"})
    store.put(twice)
    assert accepted(overrides, ROOM, "cold") is True


def test_a_mention_that_is_all_there_is_has_copies(store: FeedbackStore) -> None:
    store.put(feedback("cold", "cold", accepted=False))
    assert accepted(FeedbackOverrides(store), "Cold", "Cold") is False
    assert accepted(FeedbackOverrides(store), "a cold day", "cold") is None


def test_every_replica_learns_and_forgets_also_one_that_starts_later(store: FeedbackStore) -> None:
    first, second = FeedbackOverrides(store), FeedbackOverrides(store)
    given = feedback(ROOM, "cold", accepted=False)
    store.put(given)
    third = FeedbackOverrides(store)
    assert [accepted(each, ROOM, "cold") for each in (first, second, third)] == [False] * 3
    assert {each.version for each in (first, second, third)} == {1}
    store.put(feedback(ROOM, "cold", accepted=True, at=2.0))
    assert [accepted(each, ROOM, "cold") for each in (first, second, third)] == [True] * 3
    store.undo(given.id)
    assert [accepted(each, ROOM, "cold") for each in (first, second, third)] == [None] * 3


def test_changes_are_told_once(store: FeedbackStore) -> None:
    overrides = FeedbackOverrides(store)
    assert overrides.refresh() is None
    given = feedback(ROOM, "cold", accepted=False)
    store.put(given)
    changes = overrides.refresh()
    assert changes is not None
    assert changes.given == (given,)
    assert overrides.refresh() is None


def test_what_is_known_stays_while_the_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.selection.feedback_overrides._RETRY_S", 0.0)
    with Valkey(tmp_path) as server:
        store = FeedbackStore.from_settings(Settings(redis=SecretStr(server.url)))
        overrides = FeedbackOverrides(store)
        store.put(feedback(ROOM, "cold", accepted=False))
        assert accepted(overrides, ROOM, "cold") is False
        server.stop()
        assert accepted(overrides, ROOM, "cold") is False
        again = Valkey(tmp_path, server.port)
        again.password = server.password
        with again:
            assert accepted(FeedbackOverrides(store), ROOM, "cold") is False  # it survived
            assert accepted(overrides, ROOM, "cold") is False
            assert overrides.version == 1
        store.close()


def test_a_store_that_began_anew_leaves_nothing_of_before(store: FeedbackStore, valkey: Valkey) -> None:
    overrides = FeedbackOverrides(store)
    for n in range(3):
        store.put(feedback(f"{ROOM} {n}", "cold", accepted=False))
    assert accepted(overrides, ROOM, "cold") is False
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    store.put(feedback("A warm room.", "warm", accepted=False))
    assert accepted(overrides, ROOM, "cold") is None
    assert accepted(overrides, "A warm room.", "warm") is False
