"""What a choice finds, in a real store and among real dead letters."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dead_letters import DeadLetters, Filter
from services.erasure import Choice, Erasures
from shared.backends.records import Record, dead_letter_headers
from shared.backends.result_store import ResultStore
from shared.backends.streams.sink import Sink
from shared.backends.streams.topics import ensure_topics
from shared.messages import Extraction, SourcePosition
from shared.settings import Settings

OLD, NEW = 1_700_000_000_000, 1_790_000_000_000
BETWEEN = 1_750_000_000_000


def place(offset: int, time_ms: int) -> SourcePosition:
    return SourcePosition(topic="documents", partition=0, offset=offset, timestamp_ms=time_ms)


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """Two old documents and a new one in the store; letters of an old one, of one without a result, of no document."""
    ensure_topics(settings)
    with closing(ResultStore.from_settings(settings)) as store:
        for n, (id_, time_ms, ward) in enumerate((("a", OLD, 7), ("b", OLD, 8), ("c", NEW, 7))):
            store.put(
                Extraction(
                    document_id=id_,
                    text_sha256="",
                    lang="en",
                    types=(),
                    entities=(),
                    metadata={"ward": ward},
                    source=place(10 * (n + 1), time_ms),
                    model_revision="r",
                )
            )
        store.put(
            Extraction(document_id="of 0.2.0", text_sha256="", lang="en", types=(), entities=(), model_revision="r")
        )
    letters = [
        ("a", place(9, OLD), json.dumps({"id": "a", "text": 5}).encode()),
        ("c", place(31, NEW), json.dumps({"id": "c", "text": "t", "metadata": {"ward": "8"}}).encode()),
        ("failed", place(2, OLD), json.dumps({"id": "failed", "text": "t", "metadata": {"ward": 7}}).encode()),
        ("b", place(3, OLD), b"not json"),
    ]
    with closing(Sink(settings)) as sink:
        for key, position, value in letters:
            record = Record(
                position.topic, position.partition, position.offset, key.encode(), value, position.timestamp_ms
            )
            headers = dead_letter_headers(record, "invalid")
            sink.send(settings.topic_dead_letters, record.key, value, headers).result(60)
    return settings


def left(settings: Settings) -> tuple[set[str], set[str]]:
    """Ids with a result, and keys of the letters that are open."""
    with closing(ResultStore.from_settings(settings)) as store:
        results = {each.document_id for each in store.results()}
    return results, {(letter.record.key or b"").decode() for letter in DeadLetters(settings).letters(Filter())}


@pytest.mark.parametrize(
    ("choice", "documents", "results", "letters", "undated", "after"),
    [
        (Choice(frozenset(("a", "x"))), {"a", "x"}, 1, 1, 0, ({"b", "c", "of 0.2.0"}, {"b", "c", "failed"})),
        (Choice(before_ms=BETWEEN), {"a", "b", "failed"}, 2, 3, 1, ({"c", "of 0.2.0"}, {"c"})),
        (Choice(metadata={"ward": "7"}), {"a", "c", "failed"}, 2, 2, 0, ({"b", "of 0.2.0"}, {"b", "c"})),
        (Choice(before_ms=OLD, metadata={"ward": "7"}), set(), 0, 0, 0, None),
        (Choice(metadata={"ward": "8"}), {"b", "c"}, 1, 2, 0, ({"a", "of 0.2.0"}, {"a", "failed"})),
    ],
)
def test_a_choice_finds_results_and_letters(
    filled: Settings,
    choice: Choice,
    documents: set[str],
    results: int,
    letters: int,
    undated: int,
    after: tuple[set[str], set[str]] | None,
) -> None:
    with Erasures(filled) as erasures:
        before = left(filled)
        found = erasures.find(choice)
        assert (found.documents.keys(), found.results, len(found.letters), found.undated) == (
            documents,
            results,
            letters,
            undated,
        )
        assert left(filled) == before
        for _ in range(2):  # the second time changes nothing, and is no error
            erasures.erase(found)
            assert left(filled) == (after or before)
            found = erasures.find(choice)


@given(value=st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.lists(st.integers(), max_size=3)))
def test_metadata_is_compared_as_it_is_written(value: object) -> None:
    text = value if isinstance(value, str) else json.dumps(value)
    assert Choice(metadata={"m": text}).takes(0, {"m": value})
    assert not Choice(metadata={"m": text}).takes(0, {})
    assert not Choice(metadata={"m": f"{text} "}).takes(0, {"m": str(value)}) or str(value) == f"{text} "
    assert not Choice(frozenset("x"), metadata={"m": text}).takes(0, {"m": value})


def test_one_is_not_true() -> None:
    assert not Choice(metadata={"m": "1"}).takes(0, {"m": True})
    assert not Choice(metadata={"m": "not json"}).takes(0, {"m": 1})


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a":' * 50_000])
def test_what_is_too_much_for_json_agrees_with_nothing(text: str) -> None:
    assert not Choice(metadata={"m": text}).takes(0, {"m": 1})
