"""A producer."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from kafka import KafkaProducer  # type: ignore[import-untyped]
from kafka.errors import KafkaError  # type: ignore[import-untyped]

from shared.backends.records import Headers, milliseconds
from shared.backends.streams.client import CONNECT_MS, OVERHEAD_BYTES, client_options, stream_error, translated
from shared.messages import SourcePosition
from shared.settings import Settings

_LINGER_MS = 5


class Sink:
    """A producer: acknowledged by all in-sync replicas, retried without duplicates or reordering. Thread-safe.

    Records of one key go to one partition, in the order they were sent (the same murmur2 hash as Java clients).
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with translated(settings):
            self._producer: Any = KafkaProducer(
                **client_options(settings),
                acks="all",
                enable_idempotence=True,
                allow_auto_create_topics=False,
                max_request_size=settings.max_message_bytes + OVERHEAD_BYTES,
                max_block_ms=CONNECT_MS,
                linger_ms=_LINGER_MS,
            )

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()
    ) -> Future[SourcePosition | None]:
        """Hands a record over. The future resolves when the broker acknowledged it, or fails with StreamError.

        It tells where the record stands; None where the broker does not, as after some retries.

        A record with neither key nor value, which Kafka knows but the client refuses, is sent with an empty value.
        Waits up to ten seconds where the topic's metadata is not at hand.
        """
        future: Future[SourcePosition | None] = Future()
        try:
            sent = self._producer.send(
                topic, key=key, value=b"" if key is None and value is None else value, headers=list(headers)
            )
        except (KafkaError, OSError, RuntimeError) as error:
            future.set_exception(stream_error(error, self._settings))
            return future
        sent.add_callback(lambda told: future.set_result(self._position(told)))
        sent.add_errback(lambda error: future.set_exception(stream_error(error, self._settings)))
        return future

    def _position(self, told: Any) -> SourcePosition | None:
        if told.offset < 0:
            return None
        topic_id = self._producer._metadata.topic_id(told.topic)  # noqa: SLF001
        return SourcePosition(
            topic=told.topic,
            topic_id="" if topic_id is None or topic_id.int == 0 else topic_id.hex,
            partition=told.partition,
            offset=told.offset,
            timestamp_ms=milliseconds(told.timestamp),
        )

    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits until every record sent before is acknowledged or failed. StreamError after ``timeout_s``."""
        with translated(self._settings):
            self._producer.flush(timeout=timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Sends what is waiting, for at most ``timeout_s``, and lets go of the broker."""
        with translated(self._settings):
            self._producer.close(timeout=timeout_s)
