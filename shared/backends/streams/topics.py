"""The topics that biobracket reads and writes."""

from __future__ import annotations

from typing import Any

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.admin import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from kafka.errors import TopicAlreadyExistsError  # type: ignore[import-untyped]

from shared.backends.streams.client import CONNECT_MS, OVERHEAD_BYTES, client_options, translated
from shared.settings import Settings

_A_CENTURY_MS = 100 * 365 * 86400 * 1000


def ensure_topics(settings: Settings) -> None:
    """Creates the four topics where they are absent; leaves existing ones as they are. StreamError on failure."""
    wanted = (
        settings.topic_documents,
        settings.topic_entities,
        settings.topic_dead_letters,
        settings.topic_feedback,
    )
    with translated(settings):
        admin = KafkaAdminClient(**client_options(settings))
        try:
            for topic in sorted(set(wanted) - set(admin.list_topics())):
                _create(admin, topic, settings)
            admin.wait_for_topics(list(wanted), timeout_ms=CONNECT_MS)
        finally:
            admin.close()


def retention_ms(settings: Settings) -> dict[str, int | None]:
    """How long records of documents, dead letters and feedback stay, by topic, in milliseconds.

    Negative: for good; None: the broker does not tell.
    """
    topics = (settings.topic_documents, settings.topic_dead_letters, settings.topic_feedback)
    with translated(settings):
        admin = KafkaAdminClient(**client_options(settings))
        try:
            wanted = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
            told = admin.describe_configs(wanted, config_filter="all")
        finally:
            admin.close()
    configs = {name: config for kind in told.values() for name, config in kind.items()}
    kept: dict[str, int | None] = {}
    for topic in topics:
        value = configs.get(topic, {}).get("retention.ms", {}).get("value")
        policy = configs.get(topic, {}).get("cleanup.policy", {}).get("value") or ""
        kept[topic] = None if value is None else int(value) if "delete" in policy else -1
    return kept


def _create(admin: Any, topic: str, settings: Settings) -> None:
    configs = {"max.message.bytes": str(settings.max_message_bytes + OVERHEAD_BYTES)}
    if topic == settings.topic_entities:
        # It holds the last result of every document, for as long as there are documents: `biobracket rebuild`.
        configs["cleanup.policy"] = "compact"
        # And the erasures, for as long as the store keeps their marks, which `biobracket rebuild` makes again.
        configs["delete.retention.ms"] = str(settings.erasure_ttl * 1000 or _A_CENTURY_MS)
    options = {"num_partitions": settings.partitions, "replication_factor": settings.replication, "configs": configs}
    try:
        admin.create_topics({topic: options}, timeout_ms=CONNECT_MS)
    except TopicAlreadyExistsError:  # another process was faster
        return
