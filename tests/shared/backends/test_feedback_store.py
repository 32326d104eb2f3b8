"""What reviewers say, on one Valkey server and on a cluster of three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.backends.feedback_store import FeedbackStore
from shared.errors import StoreError
from shared.messages import encodable
from shared.selection.feedback import Feedback, Opinion
from shared.text.segmentation import segment
from tests.support.servers import Target

TEXT = "The patient was kept in a cold room."


def opinion(**fields: object) -> Opinion:
    return Opinion.model_validate({"text": TEXT, "start": 26, "end": 30, "type": "disease", "accepted": False} | fields)


def feedback(id_: str, at: float = 1.0, **fields: object) -> Feedback:
    return opinion(id=id_, time=at, **fields).feedback(now=0.0)


@pytest.fixture
def store(target: Target) -> Iterator[FeedbackStore]:
    target.everywhere("FLUSHALL")
    made = FeedbackStore.from_settings(target.settings)
    yield made
    made.close()


def ids(store: FeedbackStore) -> list[str]:
    return [each.id for each in store.page().feedback]


def test_an_opinion_gets_what_it_lacks() -> None:
    made = opinion().feedback(now=7.5)
    assert (made.time, made.mention) == (7.5, "cold")
    assert made.id == opinion(accepted=True, reviewer="b", time=9.0).feedback(now=8.0).id
    assert made.id != opinion(type="symptom").feedback(now=7.5).id
    assert opinion(id="mine", time=3.0).feedback(now=7.5).id == "mine"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"start": 30, "end": 30}, "end"),
        ({"end": 99}, "end"),
        ({"start": 25}, "start"),
        ({"end": 31}, "start"),
        ({"type": "weather"}, "type"),
        ({"text": TEXT + "\ud800"}, "text"),
        ({"reviewer": "\ud800"}, "reviewer"),
        ({"time": -1.0}, "time"),
        ({"time": float("nan")}, "time"),
    ],
)
def test_a_wrong_opinion_is_refused_without_its_text(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        opinion(**fields)
    first = refused.value.errors()[0]
    assert named in (*first["loc"], first["msg"].removeprefix("Value error, ").partition(":")[0])
    assert "patient" not in str(refused.value)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60), st.data())
def test_the_selector_meets_it_as_in_a_document(text: str, data: st.DataObject) -> None:
    places = [n for n, character in enumerate(text) if not character.isspace()]
    if not places:
        return
    start = data.draw(st.sampled_from(places))
    end = data.draw(st.sampled_from([n for n in places if n >= start])) + 1
    candidate = opinion(text=encodable(text), start=start, end=end, lang="en").feedback(now=0.0).candidate()
    assert candidate.text == text[start:end]
    assert candidate.segment.start <= start < end <= candidate.segment.end
    assert text[candidate.segment.start : candidate.segment.end] == candidate.segment.text
    inside = [(s, e) for s, e in segment(text, "en") if s <= start and end <= e]
    assert not inside or inside == [(candidate.segment.start, candidate.segment.end)]


def test_the_later_opinion_counts_and_a_repeated_one_does_not(store: FeedbackStore) -> None:
    assert store.version() == 0
    assert store.put(feedback("a", 1.0))
    assert not store.put(feedback("a", 1.0))
    assert store.put(feedback("a", 2.0, accepted=True))
    assert not store.put(feedback("a", 1.5))
    assert store.version() == 2
    (kept,) = store.page().feedback
    assert (kept.accepted, kept.time) == (True, 2.0)


def test_what_was_taken_back_does_not_return(store: FeedbackStore) -> None:
    store.put(feedback("a", 5.0))
    assert store.undo("a", at=6.0)
    assert not store.undo("a")
    assert not store.undo("b")
    assert not store.put(feedback("a", 5.0))  # a record that is read again
    assert ids(store) == []
    assert store.put(feedback("a", 7.0))
    assert not store.undo("a", at=6.0)  # so is this
    assert ids(store) == ["a"]
    assert store.undo("a")
    assert ids(store) == []


def test_what_is_taken_back_before_it_comes_is_refused(store: FeedbackStore) -> None:
    assert store.undo("a", at=6.0)
    assert not store.undo("a", at=6.0)
    assert not store.put(feedback("a", 5.0))
    assert ids(store) == []
    assert store.changes().gone == ("a",)


def test_one_that_is_ahead_of_the_clock_can_be_taken_back(store: FeedbackStore) -> None:
    store.put(feedback("a", 9e10))
    assert store.undo("a")
    assert not store.put(feedback("a", 9e10))


def test_pages_hold_all_the_newest_first(store: FeedbackStore) -> None:
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
def test_changes_since_a_version_are_all_there_is_to_learn(
    store: FeedbackStore, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
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


def test_a_store_that_began_anew_is_noticed(store: FeedbackStore, target: Target) -> None:
    for n in range(3):
        store.put(feedback(str(n)))
    target.everywhere("FLUSHALL")
    store.put(feedback("new"))
    changes = store.changes(3)
    assert changes.restarted
    assert [each.id for each in changes.given] == ["new"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 5), st.booleans()), max_size=12))
@hypothesis_settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whoever_follows_the_changes_knows_what_is_there(
    target: Target, history: list[tuple[str, bool, int, bool]]
) -> None:
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


def test_a_store_that_is_away_is_told(target: Target) -> None:
    settings = target.settings.model_copy(update={"redis_cluster": False})
    away = FeedbackStore.from_settings(
        settings.model_copy(update={"redis": type(settings.redis)("redis://127.0.0.1:1")})
    )
    with pytest.raises(StoreError, match="BIOBRACKET_REDIS"):
        away.version()


def test_its_text_is_a_unicode_text() -> None:
    with pytest.raises(ValueError, match="lone surrogate at character 2"):
        encodable("ab\ud800")
