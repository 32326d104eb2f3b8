"""Which member of a consumer group reads which partitions."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor  # type: ignore[import-untyped]
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment  # type: ignore[import-untyped]


class Assignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """Cooperative and sticky, topic by topic.

    The base counts the partitions of all topics together: a member that joins could get those of feedback alone, and
    no document.
    """

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, Any]:
        shares: dict[str, dict[str, list[int]]] = {member.member_id: {} for member in members}
        for topic in sorted({topic for member in members for topic in member.metadata.topics}):
            some = [
                SimpleNamespace(member_id=member.member_id, metadata=_of_topic(member.metadata, topic))
                for member in members
                if topic in member.metadata.topics
            ]
            for member, share in super().assign(cluster, some).items():
                if partitions := sorted(place.partition for place in share.partitions()):
                    shares[member][topic] = partitions
        return {
            member: ConsumerProtocolAssignment(self.version, sorted(share.items()), b"")
            for member, share in shares.items()
        }

    def forget(self) -> None:
        """After a lost session nothing is owned.

        The base would claim it in the next round all the same, and what is claimed is given to nobody else: it could
        be read by no member.
        """
        self.member_assignment = None


def _of_topic(metadata: Any, topic: str) -> SimpleNamespace:
    owned = [each for each in getattr(metadata, "owned_partitions", None) or () if each.topic == topic]
    return SimpleNamespace(topics=[topic], owned_partitions=owned, generation_id=metadata.generation_id)
