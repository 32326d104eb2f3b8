"""The topics that biobracket reads and writes."""

from __future__ import annotations

from typing import Any

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.errors import TopicAlreadyExistsError  # type: ignore[import-untyped]

from shared.backends.streams.client import CONNECT_MS, OVERHEAD_BYTES, client_options, translated
from shared.settings import Settings


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


def _create(admin: Any, topic: str, settings: Settings) -> None:
    configs = {"max.message.bytes": str(settings.max_message_bytes + OVERHEAD_BYTES)}
    if topic == settings.topic_entities:
        # It holds the last result of every document, for as long as there are documents: `biobracket rebuild`.
        configs["cleanup.policy"] = "compact"
    options = {"num_partitions": settings.partitions, "replication_factor": settings.replication, "configs": configs}
    try:
        admin.create_topics({topic: options}, timeout_ms=CONNECT_MS)
    except TopicAlreadyExistsError:  # another process was faster
        return
