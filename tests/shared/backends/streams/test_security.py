"""Logins at Apache Kafka over TLS, and each service's work as a user with its rules."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from shared.backends import access
from shared.backends.streams import client
from shared.backends.streams.scan import Lag, Scan
from shared.backends.streams.security import handshake_problem, login_problem, security_options
from shared.backends.streams.sink import Sink
from shared.backends.streams.source import Source
from shared.backends.streams.topics import ensure_topics, retention_ms
from shared.errors import StreamError
from shared.settings import Settings
from tests.support.certificates import Authority, Issuer
from tests.support.secured import PLAIN_PASSWORD, PLAIN_USER, SecureKafka
from tests.support.streams import PATIENCE_S, read

GROUP = "biobracket"
SECRET = "zq17"


@pytest.fixture(scope="module")
def topics(secure_kafka: SecureKafka, fresh: Callable[[str], Settings]) -> Settings:
    """Topics, and a user for each service with its rules on them."""
    settings = fresh(secure_kafka.address)
    ensure_topics(settings)
    for service in access.KAFKA:
        secure_kafka.add_user(f"user-{service}", f"{SECRET}-{service}")
        secure_kafka.allow(f"user-{service}", settings, GROUP, service)
    for user in (PLAIN_USER, "ward-3", "CN=client"):
        secure_kafka.allow(user, settings, GROUP, "producer")
    return settings


@pytest.fixture
def of(secure_kafka: SecureKafka, topics: Settings, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a service, with its password in a file."""
    for service in access.KAFKA:
        (tmp_path / service).write_text(f"{SECRET}-{service}\n")

    def make(service: str, **others: Any) -> Settings:
        given = {"service": service, "kafka_user": "user-{service}", "kafka_password_file": tmp_path / "{service}"}
        return secure_kafka.settings(topics, **given | others)

    return make


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_MS", 1000)


def send(settings: Settings, topic: str) -> None:
    with closing(Sink(settings)) as sink:
        sink.send(topic, b"k", b"v").result(PATIENCE_S)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(StreamError) as failed:
        call()
    said = str(failed.value)
    assert not failed.value.retryable
    assert "\n" not in said
    assert SECRET not in said
    return said


def test_a_service_does_its_work_with_its_rules(of: Callable[..., Settings], topics: Settings) -> None:
    for service, topic in (
        ("producer", topics.topic_documents),
        ("query", topics.topic_documents),
        ("ingest", topics.topic_entities),
        ("ingest", topics.topic_dead_letters),
        ("operator", topics.topic_documents),
        ("operator", topics.topic_dead_letters),
        ("operator", topics.topic_feedback),
    ):
        send(of(service), topic)
    for service in ("ingest", "operator"):
        ensure_topics(of(service))
    ingest = of("ingest")
    with closing(Source(ingest, GROUP, [topics.topic_documents, topics.topic_feedback])) as source:
        records = read(source, 4)
        source.commit({(r.topic, r.partition): r.offset + 1 for r in records})
    operator = of("operator")
    with closing(Lag(operator, GROUP, topics.topic_documents)) as lag:
        assert lag.read() == 0
    with closing(Scan(operator, topics.topic_documents)) as scan:
        assert sum(scan.committed(GROUP).values()) == 3
    for topic in (topics.topic_entities, topics.topic_dead_letters):
        with closing(Scan(operator, topic)) as scan:
            assert sum(map(len, scan.read())) > 0
    assert None not in retention_ms(operator).values()
    with closing(Scan(of("reader"), topics.topic_entities)) as scan:
        assert sum(map(len, scan.read())) == 1


def test_what_is_another_services_is_refused(of: Callable[..., Settings], topics: Settings) -> None:
    for service, topic in (
        ("producer", topics.topic_entities),
        ("query", topics.topic_entities),
        ("query", topics.topic_dead_letters),
        ("ingest", topics.topic_documents),
        ("ingest", topics.topic_feedback),
        ("operator", topics.topic_entities),
    ):
        said = refusal(lambda service=service, topic=topic: send(of(service), topic))
        assert said.startswith(f"kafka: user-{service} is not authorised for topic {topic}; ")
    # Who may write to no topic at all is refused before one is named.
    said = refusal(lambda: send(of("reader"), topics.topic_entities))
    assert said.startswith("kafka: user-reader is not authorised for writing to any topic")
    for service, topic in (("query", topics.topic_documents), ("ingest", topics.topic_entities)):

        def scan(service: str = service, topic: str = topic) -> None:
            with closing(Scan(of(service), topic)) as reading:
                list(reading.read())

        assert f"not authorised for topic {topic}" in refusal(scan)

    def join() -> None:
        with closing(Source(of("ingest"), "another", [topics.topic_documents])) as source:
            source.poll(PATIENCE_S, 1)

    assert "the consumer group (BIOBRACKET_INGEST_GROUP)" in refusal(join)
    assert set(retention_ms(of("ingest")).values()) == {None}


@pytest.mark.usefixtures("hasty")
def test_a_login_that_is_refused_is_told(of: Callable[..., Settings], topics: Settings) -> None:
    wrong = {"kafka_password_file": None, "kafka_password": SecretStr(f"{SECRET}-wrong")}
    for others, says in (
        (wrong, "kafka_user: the broker does not accept user-query by SCRAM-SHA-512; .*BIOBRACKET_KAFKA_PASSWORD"),
        ({"kafka_user": "nobody"}, "does not accept nobody"),
        (wrong | {"kafka_mechanism": "PLAIN"}, "does not accept user-query by PLAIN"),
        ({"kafka_mechanism": "SCRAM-SHA-256"}, "kafka_mechanism: .*BIOBRACKET_KAFKA_MECHANISM"),
    ):
        with pytest.raises(StreamError, match=says):
            ensure_topics(of("query", **others))
    for call in (
        lambda: Sink(of("query", **wrong)),
        lambda: Source(of("query", **wrong), GROUP, [topics.topic_documents]),
        lambda: Scan(of("query", **wrong), topics.topic_documents),
        lambda: Lag(of("query", **wrong), GROUP, topics.topic_documents),
    ):
        assert "BIOBRACKET_KAFKA_USER" in refusal(call)
    assert login_problem(of("query")) is None


@pytest.mark.usefixtures("hasty")
def test_why_tls_fails_is_told(
    of: Callable[..., Settings], secure_kafka: SecureKafka, topics: Settings, tmp_path: Path
) -> None:
    for others, says in (
        ({"kafka_ca": None}, "kafka_ca: the certificate of a broker does not pass"),
        ({"kafka_ca": Authority(tmp_path / "other").file}, "BIOBRACKET_KAFKA_CA"),
        ({"kafka": secure_kafka.address}, "kafka_protocol: the broker does not speak TLS"),
        ({"kafka": secure_kafka.mtls, "kafka_protocol": "SSL", "kafka_user": ""}, "BIOBRACKET_KAFKA_CERTIFICATE"),
    ):
        assert says in refusal(lambda others=others: ensure_topics(of("query", **others)))
    assert handshake_problem(of("query")) is None


def test_plain_and_a_client_certificate(secure_kafka: SecureKafka, topics: Settings) -> None:
    plain = {"kafka_mechanism": "PLAIN", "kafka_user": PLAIN_USER, "kafka_password": SecretStr(PLAIN_PASSWORD)}
    send(secure_kafka.settings(topics, **plain), topics.topic_documents)
    certificate, key = secure_kafka.authority.issue("client")
    shown = {"kafka": secure_kafka.mtls, "kafka_protocol": "SSL", "kafka_certificate": certificate, "kafka_key": key}
    send(secure_kafka.settings(topics, **shown), topics.topic_documents)
    assert "CN=client" not in refusal(lambda: send(secure_kafka.settings(topics, **shown), topics.topic_entities))


def test_tokens(secure_kafka: SecureKafka, topics: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    settings = secure_kafka.settings(topics, kafka_mechanism="OAUTHBEARER", kafka_token_file=file)
    now = datetime.now(UTC)
    file.write_text(secure_kafka.issuer.token(iat=now))
    send(settings, topics.topic_documents)
    monkeypatch.setattr(client, "CONNECT_MS", 1000)
    for token in (
        Issuer(algorithm="RS256").token(iat=now),
        secure_kafka.issuer.token(iat=now, aud="another"),
        secure_kafka.issuer.token(iat=now - timedelta(hours=2), exp=now - timedelta(hours=1)),
    ):
        file.write_text(token)
        said = refusal(lambda: send(settings, topics.topic_documents))
        assert "BIOBRACKET_KAFKA_TOKEN" in said
        assert token not in said


def test_a_session_is_renewed_with_another_token(secure_kafka: SecureKafka, topics: Settings, tmp_path: Path) -> None:
    file = tmp_path / "token"
    settings = secure_kafka.settings(topics, kafka_mechanism="OAUTHBEARER", kafka_token_file=file)

    def renew(seconds: float) -> datetime:
        now = datetime.now(UTC)
        file.write_text(secure_kafka.issuer.token(iat=now, exp=now + timedelta(seconds=seconds)))
        return now + timedelta(seconds=seconds)

    over = renew(8)
    with closing(Sink(settings)) as sink:
        sink.send(topics.topic_documents, b"k", b"v").result(PATIENCE_S)
        renew(600)
        while datetime.now(UTC) < over + timedelta(seconds=1):
            sink.send(topics.topic_documents, b"k", b"v").result(PATIENCE_S)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kafka_user": "u"}, "BIOBRACKET_KAFKA_PROTOCOL to SASL_SSL"),
        ({"kafka_protocol": "SASL_SSL"}, "needs user and password; set BIOBRACKET_KAFKA_USER"),
        ({"kafka_protocol": "SASL_SSL", "kafka_mechanism": "OAUTHBEARER"}, "either BIOBRACKET_KAFKA_TOKEN_FILE"),
        ({"kafka_ca": "ca.pem"}, "does not encrypt"),
        ({"kafka_protocol": "SSL", "kafka_ca": "none.pem"}, "BIOBRACKET_KAFKA_CA: none.pem holds no certificates"),
        (
            {"kafka": "broker:9092", "kafka_protocol": "SASL_PLAINTEXT", "kafka_mechanism": "PLAIN"},
            "in the clear; set BIOBRACKET_KAFKA_PROTOCOL to SASL_SSL",
        ),
        ({"kafka_security": {"sasl_plain_password": SECRET}}, "BIOBRACKET_KAFKA_PASSWORD_FILE"),
    ],
)
def test_settings_that_do_not_fit_together(given: dict[str, Any], says: str) -> None:
    assert says in refusal(lambda: security_options(Settings(**given)))


def test_further_options_are_passed_on() -> None:
    settings = Settings(kafka_security={"client_id": SECRET})
    assert security_options(settings) == {"security_protocol": "PLAINTEXT", "client_id": SECRET}
    assert SECRET not in repr(settings)
