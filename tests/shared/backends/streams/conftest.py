"""The brokers: Apache Kafka, the embedded one, and noida-db where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from shared.backends.records import Callback
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics
from shared.settings import Settings
from tests.support.streams import Noida, needs_noida


@pytest.fixture(scope="module", params=["kafka", "tansu", pytest.param("noida", marks=needs_noida)])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param != "noida":
        yield request.getfixturevalue({"kafka": "kafka", "tansu": "broker"}[request.param]).url
        return
    with Noida(tmp_path_factory.mktemp("noida")) as server:
        yield server.url


@pytest.fixture
def stream(address: str, fresh: Callable[[str], Settings]) -> Settings:
    """Settings with the test's own topics, created."""
    settings = fresh(address)
    ensure_topics(settings)
    return settings


@pytest.fixture
def sink(stream: Settings) -> Iterator[Sink]:
    producer = Sink(stream)
    yield producer
    producer.close()


@pytest.fixture
def source(stream: Settings) -> Iterator[Callable[..., Source]]:
    """Makes members of one group on the documents topic, which are closed at the end.

    The group is the test's own: Tansu can keep a dead leader, and then later members of a group get no partitions.
    """
    members: list[Source] = []

    def make(**callbacks: Callback) -> Source:
        members.append(Source(stream, stream.topic_documents, [stream.topic_documents], **callbacks))
        return members[-1]

    yield make
    for member in members:
        member.close()
