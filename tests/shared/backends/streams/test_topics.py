from __future__ import annotations

from collections.abc import Callable

from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics
from shared.settings import Settings
from tests.support.streams import until


def test_topics_are_made_once(stream: Settings, source: Callable[..., Source]) -> None:
    ensure_topics(stream)
    member = source()
    until(member, lambda: len(member.assignment()) == 3)
    assert member.assignment() == {(stream.topic_documents, n) for n in range(3)}
