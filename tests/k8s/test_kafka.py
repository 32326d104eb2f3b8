"""Topics and users, against the code."""

from __future__ import annotations

from typing import Any

import pytest

from services.ingest.config import IngestConfig
from shared.backends.access import kafka_rules
from shared.settings import Settings
from tests.support.manifests import Manifest, manifests


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("DOCUMENTS", "ENTITIES", "DEAD_LETTERS", "FEEDBACK"):
        monkeypatch.delenv(f"BIOBRACKET_TOPIC_{name}", raising=False)
    return Settings()


def named(kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests("kafka") if each["kind"] == kind}


def rights(user: str) -> dict[tuple[str, str], set[str]]:
    acls: list[dict[str, Any]] = named("KafkaUser")[user]["spec"]["authorization"]["acls"]
    return {(acl["resource"]["type"], acl["resource"]["name"]): set(acl["operations"]) for acl in acls}


def test_topics_are_those_of_the_settings(settings: Settings) -> None:
    assert named("KafkaTopic").keys() == {
        settings.topic_documents,
        settings.topic_entities,
        settings.topic_dead_letters,
        settings.topic_feedback,
    }


def test_the_application_may_do_what_its_services_do(settings: Settings) -> None:
    """And what an operator's commands do, which run in its pods."""
    may = rights("biobracket")
    for service in ("ingest", "query", "operator"):
        for kind, name, operation in kafka_rules(settings, IngestConfig().group, service):
            assert operation in may[kind, name], (service, kind, name)
    assert not {operation for each in may.values() for operation in each} - {
        "Read",
        "Write",
        "Describe",
        "DescribeConfigs",
    }


def test_others_may_do_less(settings: Settings) -> None:
    producer, consumer = rights("biobracket-producer"), rights("biobracket-consumer")
    assert {topic for (_, topic), may in producer.items() if "Write" in may} == {
        settings.topic_documents,
        settings.topic_feedback,
    }
    assert all("Read" not in may for may in producer.values())
    assert {topic for kind, topic in consumer if kind == "topic"} == {settings.topic_entities}
    assert all("Write" not in may for may in consumer.values())


def test_there_are_partitions_for_every_replica_of_ingest(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    from tests.support.manifests import one

    most = int(one("overlays/cpu", "ConfigMap")["data"]["BIOBRACKET_INGEST_MAX_REPLICAS"])
    assert most <= named("KafkaTopic")[settings.topic_documents]["spec"]["partitions"]
