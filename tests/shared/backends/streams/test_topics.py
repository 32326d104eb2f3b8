from __future__ import annotations

from collections.abc import Callable

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics, retention_ms
from shared.settings import Settings
from tests.support.kafka import Kafka
from tests.support.streams import until


def test_topics_are_made_once(stream: Settings, source: Callable[..., Source]) -> None:
    ensure_topics(stream)
    member = source()
    until(member, lambda: len(member.assignment()) == 3)
    assert member.assignment() == {(stream.topic_documents, n) for n in range(3)}


def test_entities_are_compacted(kafka: Kafka, fresh: Callable[[str], Settings]) -> None:
    settings = fresh(kafka.url)
    ensure_topics(settings)
    admin = KafkaAdminClient(bootstrap_servers=kafka.url)
    names = (settings.topic_entities, settings.topic_documents)
    told = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    admin.close()
    (topics,) = told.values()
    policies = {name: config.get("cleanup.policy", {}).get("value", "delete") for name, config in topics.items()}
    assert policies == {settings.topic_entities: "compact", settings.topic_documents: "delete"}
    # Null values of erased documents stay as long as the marks in the store.
    assert int(topics[settings.topic_entities]["delete.retention.ms"]["value"]) == settings.erasure_ttl * 1000


def test_retention_is_told_where_the_broker_tells_it(each_broker: Settings) -> None:
    ensure_topics(each_broker)
    week = 7 * 86_400_000
    kept = retention_ms(each_broker)
    assert kept.keys() == {each_broker.topic_documents, each_broker.topic_dead_letters, each_broker.topic_feedback}
    assert set(kept.values()) in ({week}, {None})
