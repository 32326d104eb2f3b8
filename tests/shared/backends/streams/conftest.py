"""The brokers: Apache Kafka, the embedded one, and noida-db where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from shared.backends.access import KAFKA
from shared.backends.records import Callback
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics
from shared.settings import Settings
from tests.support.certificates import Authority, Issuer
from tests.support.kafka import Unavailable
from tests.support.secured import SecureKafka
from tests.support.streams import Noida, needs_noida


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """Apache Kafka with TLS, users, and an authorizer that denies what no rule allows."""
    try:
        server = SecureKafka(
            tmp_path_factory.mktemp("secure-kafka"),
            Authority(tmp_path_factory.mktemp("authority")),
            Issuer(algorithm="RS256"),
        )
    except Unavailable as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="module", params=["kafka", "tansu", "secured", pytest.param("noida", marks=needs_noida)])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "secured":
        yield request.getfixturevalue("secure_kafka").address
        return
    if request.param != "noida":
        yield request.getfixturevalue({"kafka": "kafka", "tansu": "broker"}[request.param]).url
        return
    with Noida(tmp_path_factory.mktemp("noida")) as server:
        yield server.url


@pytest.fixture
def stream(request: pytest.FixtureRequest, address: str, fresh: Callable[[str], Settings]) -> Settings:
    """Settings with the test's own topics, created.

    Where Kafka is secured they are of a user that has the rules of all services together, and no others.
    """
    settings = fresh(address)
    ensure_topics(settings)
    if "secured" not in request.node.name:
        return settings
    server: SecureKafka = request.getfixturevalue("secure_kafka")
    server.add_user("contract", "zq17")
    for group in (settings.topic_documents, f"g-{settings.topic_documents}"):
        server.allow("contract", settings, group, *KAFKA)
    return server.settings(settings, kafka_user="contract", kafka_password=SecretStr("zq17"))


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
