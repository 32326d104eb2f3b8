"""What every Kafka client here shares: options, errors, records.

Targets are Apache Kafka and the embedded broker (Tansu). Some habits serve both. Offsets are committed by hand only.
Partitions are assigned cooperatively, so that a rebalance leaves alone what stays (KIP-429).
Lag comes from the high-water marks that fetches report, since Tansu answers ListOffsets with wrong end offsets; for
the same reason a group without offsets starts at the earliest record. Nothing rests on transactions or static
membership, which Tansu lacks: both are used where they are, delivery is at least once and results are idempotent.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kafka.errors import (  # type: ignore[import-untyped]
    CommitFailedError,
    FencedInstanceIdError,
    IllegalGenerationError,
    InconsistentGroupProtocolError,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RebalanceInProgressError,
    RecordListTooLargeError,
    RetriableError,
    UnknownMemberIdError,
)
from kafka.structs import OffsetAndMetadata, TopicPartition  # type: ignore[import-untyped]

from shared.backends.records import Partition, Record, milliseconds
from shared.backends.streams.security import handshake_problem, login_problem, refusal, security_options
from shared.errors import Fenced, MixedAssignors, Rebalancing, StreamError
from shared.settings import Settings

# kafka-python writes keys and values at DEBUG, which are clinical text.
logging.getLogger("kafka").setLevel(logging.CRITICAL)

# Latency of an idle stream follows this wait with Tansu; Kafka itself answers when there is something. 100 ms costs ten
# empty fetches a second, which are most of what an idle ingest takes of a processor.
FETCH_WAIT_MS = 100
CONNECT_MS = 10_000
COMMIT_MS = 10_000
# What a record gains over its value: key, headers of a dead letter and framing.
OVERHEAD_BYTES = 64 * 1024
FETCH_BYTES = 50 * 2**20
_UNREACHABLE = (KafkaConnectionError, KafkaTimeoutError)
_REBALANCING = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)


def record_of(consumer: Any, partition: Any, read: Any) -> Record:
    """What a consumer read of a partition, a :class:`kafka.structs.TopicPartition`."""
    headers = tuple((name, value or b"") for name, value in read.headers or ())
    topic_id = consumer._client.cluster.topic_id(partition.topic)  # noqa: SLF001
    return Record(
        topic=partition.topic,
        partition=partition.partition,
        offset=read.offset,
        key=read.key,
        value=read.value,
        timestamp_ms=milliseconds(read.timestamp),
        headers=headers,
        topic_id="" if topic_id is None or topic_id.int == 0 else topic_id.hex,
        problem=getattr(read, "problem", None),
        span=getattr(read, "span", 1),
    )


def positions(offsets: Mapping[Partition, int]) -> dict[Any, Any]:
    return {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in offsets.items()}


def client_options(settings: Settings) -> dict[str, Any]:
    """Client options of consumer, producer and admin client alike. StreamError where settings do not fit together."""
    return {
        "bootstrap_servers": [server.strip() for server in settings.kafka.split(",")],
        "bootstrap_timeout_ms": CONNECT_MS,
        **security_options(settings),
    }


class translated:
    """Turns what kafka-python raises into StreamError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (KafkaError, OSError)):
            if isinstance(error, _UNREACHABLE):
                problem = handshake_problem(self._settings) or login_problem(self._settings)
                if problem is not None:
                    raise problem from None
            # `from None`: kafka-python's messages can carry records.
            raise stream_error(error, self._settings) from None


def stream_error(error: BaseException, settings: Settings) -> StreamError:
    if isinstance(error, (MessageSizeTooLargeError, RecordListTooLargeError)):
        return StreamError(
            "max_message_bytes: a record is larger than the client or the broker takes; raise "
            "BIOBRACKET_MAX_MESSAGE_BYTES and the topic's max.message.bytes, or send smaller documents",
            retryable=False,
        )
    if isinstance(error, _REBALANCING):
        return Rebalancing("kafka: the group rebalances; what is not committed will be read again", retryable=True)
    if isinstance(error, InconsistentGroupProtocolError):
        return MixedAssignors(
            "kafka: the consumer group has members that share out partitions in another way, as biobracket did before "
            "it assigned them cooperatively; stop every consumer of the old version, then this one joins by itself",
            retryable=True,
        )
    if isinstance(error, FencedInstanceIdError):
        return Fenced(
            "instance: another consumer joined the group under the same name and has taken over; where both should "
            "run, give each pod its own BIOBRACKET_INGEST_INSTANCE",
            retryable=False,
        )
    if isinstance(error, InvalidSessionTimeoutError):
        return StreamError(
            "session_s: the broker takes no such session; set BIOBRACKET_INGEST_SESSION_S between the broker's "
            "group.min.session.timeout.ms and group.max.session.timeout.ms",
            retryable=False,
        )
    if (refused := refusal(error, settings)) is not None:
        return refused
    return StreamError(
        f"kafka: {type(error).__name__} from {settings.kafka}; see that BIOBRACKET_KAFKA names a running broker "
        "and BIOBRACKET_KAFKA_PROTOCOL what it speaks, or start the embedded one with `biobracket up`",
        retryable=isinstance(error, (RetriableError, OSError)),
    )
