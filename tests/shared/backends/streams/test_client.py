from __future__ import annotations

import pytest
from pydantic import SecretStr

from shared.backends.streams import client
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics
from shared.errors import StreamError
from shared.settings import Settings


def test_no_broker_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_MS", 300)
    settings = Settings(
        kafka="127.0.0.1:1",
        kafka_protocol="SASL_SSL",
        kafka_user="u",
        kafka_password=SecretStr("secret-word"),
    )
    for call in (
        lambda: ensure_topics(settings),
        lambda: Source(settings, "g", ["t"]),
        lambda: Sink(settings),
    ):
        with pytest.raises(StreamError, match="BIOBRACKET_KAFKA") as failed:
            call()
        assert failed.value.retryable
        assert "127.0.0.1:1" in str(failed.value)
        assert "secret-word" not in str(failed.value)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(StreamError, match="sasl_word") as failed:
        Sink(Settings(kafka_security={"sasl_word": SecretStr("secret-word")}))
    assert not failed.value.retryable
    assert "secret-word" not in str(failed.value)
