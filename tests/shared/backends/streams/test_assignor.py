from __future__ import annotations

from collections.abc import Callable

import pytest
from kafka import KafkaConsumer

from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics
from shared.errors import MixedAssignors
from shared.settings import Settings
from tests.support.kafka import Kafka
from tests.support.streams import PATIENCE_S, Member, until, wait


@pytest.mark.slow
def test_each_topic_is_shared_out_evenly(stream: Settings, source: Callable[..., Source]) -> None:
    """Whoever joins gets documents, and not the partitions of feedback alone."""
    topics = [stream.topic_documents, stream.topic_feedback]
    members = [Member(Source(stream, "g-" + stream.topic_documents, topics)) for _ in range(3)]
    everything = {(topic, p) for topic in topics for p in range(3)}

    def settled() -> bool:
        shares = [member.source.assignment() for member in members]
        return set().union(*shares) == everything and all(
            sorted(topic for topic, _ in share) == sorted(topics) for share in shares
        )

    wait(settled)
    assert [len(member.source.assignment()) for member in members] == [2, 2, 2]
    for member in members:
        member.stop()
        member.source.close()


def test_members_of_the_old_version_keep_this_one_out(kafka: Kafka, fresh: Callable[[str], Settings]) -> None:
    settings = fresh(kafka.url)
    ensure_topics(settings)
    old = KafkaConsumer(
        bootstrap_servers=[settings.kafka], group_id="g-" + settings.topic_documents, session_timeout_ms=6000
    )
    old.subscribe([settings.topic_documents])
    wait(lambda: not old.poll(timeout_ms=200) and len(old.assignment()) == 3)
    member = Source(settings, "g-" + settings.topic_documents, [settings.topic_documents])
    with pytest.raises(MixedAssignors, match="stop every consumer of the old version") as refused:
        member.poll(PATIENCE_S, 1)
    assert refused.value.retryable
    old.close()
    until(member, lambda: len(member.assignment()) == 3)
    member.close()
