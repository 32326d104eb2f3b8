"""Which documents are to be erased, by what is known of them, and the dead letters that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from services.dead_letters import DeadLetters, Filter, Letter
from shared.backends.eraser import Eraser
from shared.backends.feedback_store import FeedbackStore
from shared.backends.result_store import ResultStore
from shared.backends.streams.topics import ensure_topics
from shared.messages import SourcePosition
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Choice:
    """Documents by their ids, or else by the time of their record and by metadata, of which all must agree.

    ``before_ms``: milliseconds since 1970. Values of ``metadata`` are text, or JSON where they are no text.
    """

    ids: frozenset[str] = frozenset()
    before_ms: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def takes(self, time_ms: int, metadata: Mapping[str, Any]) -> bool:
        """Whether a version of this record time and metadata is meant, whatever its id."""
        return (
            not self.ids
            and (self.before_ms is None or time_ms < self.before_ms)
            and all(name in metadata and _agrees(metadata[name], text) for name, text in self.metadata.items())
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be erased. ``documents``: the place up to which, by id; none where everything of the document is.

    ``results``: how many of them have a result. ``letters``: places of dead letters. ``undated``: results, stored by
    0.2.0, of which it is not known whether they are old enough.
    """

    documents: Mapping[str, SourcePosition | None]
    results: int
    letters: frozenset[str]
    undated: int


class Erasures:
    """Erasures of a deployment. A context manager. Errors: StreamError, StoreError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        ensure_topics(settings)
        self._store = ResultStore.from_settings(settings)
        self._feedback = FeedbackStore.from_settings(settings)

    def __enter__(self) -> Erasures:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()
        self._feedback.close()

    def find(self, choice: Choice) -> Found:
        """What a choice means; reads all dead letters, and all results unless ids are given.

        Documents that are chosen by time or metadata are erased up to the version that was found, so that no later one
        is lost. What has neither a result nor a dead letter, such as a document in flight, is not found.
        """
        documents: dict[str, SourcePosition | None] = dict.fromkeys(choice.ids)
        undated = 0
        if choice.ids:
            ids = list(choice.ids)
            results = sum(self._store.get(id_) is not None for id_ in ids)
        else:
            for each in self._store.results():
                if each.source is None and choice.before_ms is not None:
                    undated += Choice(metadata=choice.metadata).takes(0, each.metadata)
                elif choice.takes(0 if each.source is None else each.source.timestamp_ms, each.metadata):
                    documents[each.document_id] = each.source
            results = len(documents)
        letters = frozenset(
            letter.place
            for letter in DeadLetters(self._settings).letters(Filter())
            if self._holds(letter, choice, documents)
        )
        return Found(documents, results, letters, undated)

    def erase(self, found: Found) -> None:
        """Erases what was found, and marks the dead letters as dropped. May be done again after an error."""
        with closing(Eraser(self._settings, self._store, self._feedback)) as eraser:
            eraser.erase(found.documents.items())
        if found.letters:
            DeadLetters(self._settings).drop(Filter(places=found.letters))

    def _holds(self, letter: Letter, choice: Choice, documents: dict[str, SourcePosition | None]) -> bool:
        """Whether a letter has to go; adds its document where only the letter is known of it."""
        id_, metadata = self._told(letter)
        place = letter.origin
        if id_ in documents:
            until = documents[id_]
            if until is None or not place.later_than(until):
                return True
        if letter.origin.topic == self._settings.topic_feedback or not choice.takes(place.timestamp_ms, metadata):
            return False
        if id_ is not None:
            documents[id_] = place
        return True

    def _told(self, letter: Letter) -> tuple[str | None, Mapping[str, Any]]:
        """Id and metadata of the document in a letter, which need not be valid; else its key stands for the id."""
        record = letter.record
        feedback = letter.origin.topic == self._settings.topic_feedback
        try:
            fields = json.loads(record.value or b"")
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            fields = {}
        id_, metadata = fields.get("document_id" if feedback else "id"), fields.get("metadata")
        if not isinstance(id_, str):
            id_ = None if feedback or record.key is None else record.key.decode("utf-8", "replace")
        return id_, metadata if isinstance(metadata, dict) else {}


def _agrees(value: Any, text: str) -> bool:
    if isinstance(value, str):
        return value == text
    try:
        return json.dumps(value, sort_keys=True) == json.dumps(json.loads(text), sort_keys=True)
    except (ValueError, TypeError, RecursionError):
        return False
