"""Documents with amendments, and what has to come of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from shared.backends.streams.sink import Sink
from shared.messages import Document
from shared.settings import Settings

PATIENCE_S = 300.0


@dataclass
class Expected:
    """The last version of each document by id, and what was sent in all."""

    last: dict[str, Document] = field(default_factory=dict)
    sent: int = 0

    def add(self, document: Document) -> None:
        self.last[document.id] = document
        self.sent += 1


def versions(name: str, count: int, seed: int = 0) -> Iterator[Document]:
    """``count`` short documents: every third amends an earlier one, now and then back to the text it once had."""
    chosen = random.Random(f"{name}-{seed}")
    texts: dict[str, list[str]] = {}
    for n in range(count):
        id_ = chosen.choice(list(texts)[-20:]) if texts and n % 3 == 2 else f"{name}-{n}"
        before = texts.setdefault(id_, [])
        text = before[0] if len(before) > 1 and chosen.random() < 0.3 else f"CD{n % 50} of {name} {n}."
        before.append(text)
        yield Document(id=id_, text=text, lang="en", types=("protein",))


def amendments(count: int) -> Iterator[Document]:
    """A long text and its short correction right behind; and a text that comes back. ``count`` of each."""
    long = " ".join(f"CD{n} binds." for n in range(400))
    for n in range(count):
        for id_, text in (
            (f"order-{n}", f"{long} {n}"),
            (f"order-{n}", f"CD28 {n}."),
            (f"aba-{n}", f"A CD1 {n}."),
            (f"aba-{n}", f"B CD2 {n}."),
            (f"aba-{n}", f"A CD1 {n}."),
        ):
            yield Document(id=id_, text=text, lang="en", types=("protein",))


class Producer:
    """Sends documents keyed by id, as a hospital does."""

    def __init__(self, settings: Settings, expected: Expected) -> None:
        self._settings = settings
        self._expected = expected
        self._sink = Sink(settings)
        self._sent: list[Future[None]] = []

    def send(self, document: Document) -> None:
        self._expected.add(document)
        value = document.model_dump_json().encode()
        self._sent.append(self._sink.send(self._settings.topic_documents, document.id.encode(), value))

    def settle(self) -> None:
        """Waits until the broker has all of it; AssertionError where it refused some."""
        for sent in self._sent:
            assert sent.exception(PATIENCE_S) is None
        self._sent.clear()

    def close(self) -> None:
        self._sink.close()
