"""How clients log in to Kafka, and what it means when they are refused."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from typing import Any

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.errors import (  # type: ignore[import-untyped]
    AuthorizationError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.manager import KafkaConnectionManager  # type: ignore[import-untyped]
from kafka.net.selector import NetworkSelector  # type: ignore[import-untyped]

from shared.backends.credentials import client_context, secret
from shared.backends.streams.tokens import tokens
from shared.errors import StreamError
from shared.settings import Settings

_PROBE_S = 2.0
_LOGIN_MS = 5_000
_OPTIONS = ("sasl_kerberos_", "proxy_url", "client_id")
_SETTINGS = {
    "security_protocol": "BIOBRACKET_KAFKA_PROTOCOL",
    "sasl_mechanism": "BIOBRACKET_KAFKA_MECHANISM",
    "sasl_plain_username": "BIOBRACKET_KAFKA_USER",
    "sasl_plain_password": "BIOBRACKET_KAFKA_PASSWORD_FILE",
    "ssl_cafile": "BIOBRACKET_KAFKA_CA",
    "ssl_certfile": "BIOBRACKET_KAFKA_CERTIFICATE",
    "ssl_keyfile": "BIOBRACKET_KAFKA_KEY",
}
_LOOPBACK = re.compile(r"(localhost|127(\.\d+){3}|\[::1\]):\d+")


def security_options(settings: Settings) -> dict[str, Any]:
    """Client options for TLS and SASL. StreamError where settings are missing or contradict one another."""
    protocol = settings.kafka_protocol
    options = _further(settings) | {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        options["ssl_context"] = _context(settings)
    elif settings.kafka_ca is not None or settings.kafka_certificate is not None:
        raise _wrong(
            "kafka_protocol",
            f"{protocol} does not encrypt, but there are certificates",
            "set BIOBRACKET_KAFKA_PROTOCOL to SSL or SASL_SSL, or unset BIOBRACKET_KAFKA_CA and _CERTIFICATE",
        )
    if protocol.startswith("SASL"):
        options |= {"sasl_mechanism": settings.kafka_mechanism} | _credentials(settings)
    elif settings.kafka_user or settings.kafka_token_file is not None:
        raise _wrong(
            "kafka_protocol",
            f"{protocol} does not log in, but there are credentials",
            "set BIOBRACKET_KAFKA_PROTOCOL to SASL_SSL, or unset BIOBRACKET_KAFKA_USER",
        )
    return options


def refusal(error: BaseException, settings: Settings) -> StreamError | None:
    """What it means that the broker refuses who is there, or what is wanted; None where it is another error."""
    who = settings.of_service(settings.kafka_user) or "this client"
    if isinstance(error, UnsupportedSaslMechanismError | IllegalSaslStateError):
        return _wrong(
            "kafka_mechanism",
            f"the broker does not take {settings.kafka_mechanism} here",
            "set BIOBRACKET_KAFKA_MECHANISM to what this listener takes",
        )
    if isinstance(error, SaslAuthenticationFailedError):
        names = "BIOBRACKET_KAFKA_USER and BIOBRACKET_KAFKA_PASSWORD or its file"
        if settings.kafka_mechanism == "OAUTHBEARER":
            names = "BIOBRACKET_KAFKA_TOKEN_URL or _TOKEN_FILE: issuer, audience and expiry of its tokens"
        return _wrong(
            "kafka_user", f"the broker does not accept {who} by {settings.kafka_mechanism}", f"correct {names}"
        )
    # The producer wraps its own in a message.
    if isinstance(error, AuthorizationError) or "AuthorizationFailedError" in str(error):
        return StreamError(
            f"kafka: {who} is not authorised for {_resource(error, settings)}; have an administrator of Kafka add the "
            "rule, which `biobracket access kafka` lists, or correct BIOBRACKET_KAFKA_USER",
            retryable=False,
        )
    return None


def handshake_problem(settings: Settings) -> StreamError | None:
    """Why TLS with the brokers fails, which kafka-python does not tell; None where it succeeds, or nobody answers."""
    if not settings.kafka_protocol.endswith("SSL") or "proxy_url" in settings.kafka_security:
        return None
    context = _context(settings)
    for server in settings.kafka.split(","):
        host, _, port = server.strip().rpartition(":")
        host = host.strip("[]")
        try:
            with (
                socket.create_connection((host, int(port)), _PROBE_S) as plain,
                context.wrap_socket(plain, server_hostname=host) as shaken,
                contextlib.suppress(TimeoutError),
            ):
                shaken.recv(1)  # with TLS 1.3 a refusal of the client's certificate comes late
        except ssl.SSLCertVerificationError as error:
            return _wrong(
                "kafka_ca",
                f"the certificate of a broker does not pass ({error.verify_message.rstrip('.')})",
                "name in BIOBRACKET_KAFKA_CA the certificate of the CA that signed it, and in BIOBRACKET_KAFKA a "
                "host that it is for",
            )
        except ssl.SSLError as error:
            if "CERTIFICATE" in (error.reason or ""):
                return _wrong(
                    "kafka_certificate",
                    "the broker does not accept the client's certificate, or wants one",
                    "set BIOBRACKET_KAFKA_CERTIFICATE and BIOBRACKET_KAFKA_KEY to one that it trusts",
                )
            return _wrong(
                "kafka_protocol",
                "the broker does not speak TLS 1.2 or later there",
                "correct the port in BIOBRACKET_KAFKA, or BIOBRACKET_KAFKA_PROTOCOL",
            )
        except (OSError, ValueError):
            continue
    return None


class _Probe(KafkaConnectionManager):  # type: ignore[misc]
    """Connects once. What a broker says before it closes is heard: kafka-python 3.0.12 drops what comes with the end.

    So its clients do not learn that a login was refused, and try again until time is up.
    """

    async def attempt(self) -> None:
        """Raises what kept the connection from being usable."""
        await self.get_connection("bootstrap-0", timeout_ms=_LOGIN_MS)

    async def _build_transport(self, *args: Any, **options: Any) -> Any:
        transport = await super()._build_transport(*args, **options)
        receive = transport._sock_recv  # noqa: SLF001

        def data_first() -> tuple[bytes, BaseException | None]:
            data, error = receive()
            return data, None if data else error

        transport._sock_recv = data_first  # noqa: SLF001
        return transport


def login_problem(settings: Settings) -> StreamError | None:
    """Why the broker refuses the login; None where it does not, or nobody answers."""
    if not settings.kafka_protocol.startswith("SASL"):
        return None
    servers = [server.strip() for server in settings.kafka.split(",")]
    options = {"bootstrap_servers": servers[:1], **security_options(settings)}
    net = NetworkSelector()
    manager = _Probe(net, **{n: v for n, v in options.items() if n in KafkaConnectionManager.DEFAULT_CONFIG})
    try:
        net.run(manager.attempt)
    except (KafkaError, OSError, ValueError) as error:
        return refusal(error, settings)
    finally:
        manager.close()
        net.close()
    return None


def _further(settings: Settings) -> dict[str, Any]:
    for name in settings.kafka_security:
        if name in _SETTINGS:
            raise _wrong("kafka_security", f"{name} has a setting of its own", f"set {_SETTINGS[name]}")
    known = {name for name in KafkaAdminClient.DEFAULT_CONFIG if name.startswith(_OPTIONS)}
    if unknown := sorted(set(settings.kafka_security) - known):
        raise _wrong(
            "kafka_security",
            f"no such option: {', '.join(unknown)}",
            f"BIOBRACKET_KAFKA_SECURITY takes {', '.join(sorted(known))}",
        )
    return {name: value.get_secret_value() for name, value in settings.kafka_security.items()}


def _context(settings: Settings) -> ssl.SSLContext:
    files = (settings.kafka_ca, settings.kafka_certificate, settings.kafka_key)
    ca, certificate, key = (None if path is None else settings.of_service(path) for path in files)
    return client_context("BIOBRACKET_KAFKA", (ca, certificate, key), StreamError)


def _credentials(settings: Settings) -> dict[str, Any]:
    mechanism = settings.kafka_mechanism
    in_the_clear = settings.kafka_protocol == "SASL_PLAINTEXT" and mechanism in ("PLAIN", "OAUTHBEARER")
    if in_the_clear and not all(_LOOPBACK.fullmatch(server.strip()) for server in settings.kafka.split(",")):
        raise _wrong(
            "kafka_protocol",
            f"SASL_PLAINTEXT would send what {mechanism} logs in by in the clear",
            "set BIOBRACKET_KAFKA_PROTOCOL to SASL_SSL",
        )
    if mechanism == "OAUTHBEARER":
        return {"sasl_oauth_token_provider": tokens(settings)}
    if mechanism in ("GSSAPI", "AWS_MSK_IAM"):  # which find their credentials themselves
        return {}
    password = settings.kafka_password.get_secret_value()
    if settings.kafka_password_file is not None:
        file = settings.of_service(settings.kafka_password_file)
        password = secret(file, "BIOBRACKET_KAFKA_PASSWORD_FILE", StreamError)
    if not settings.kafka_user or not password:
        raise _wrong(
            "kafka_user",
            f"{mechanism} needs user and password",
            "set BIOBRACKET_KAFKA_USER and BIOBRACKET_KAFKA_PASSWORD_FILE",
        )
    return {"sasl_plain_username": settings.of_service(settings.kafka_user), "sasl_plain_password": password}


def _resource(error: BaseException, settings: Settings) -> str:
    """What was asked for, by names that stand in settings."""
    said = f"{type(error).__name__}: {error}"
    found = re.search(r"(\w+)AuthorizationFailedError", said)
    topics = (settings.topic_documents, settings.topic_entities, settings.topic_dead_letters, settings.topic_feedback)
    named = [topic for topic in topics if re.search(rf"(?<![\w.-]){re.escape(topic)}(?![\w.-])", said)]
    if named:
        return f"topic {', '.join(named)}"
    return {
        "Topic": "a topic",
        "Group": "the consumer group (BIOBRACKET_INGEST_GROUP)",
        "Cluster": "writing to any topic, or for an operation on the cluster",
        "TransactionalId": "the transactional id",
    }.get(found[1] if found else "", "this")


def _wrong(setting: str, problem: str, remedy: str) -> StreamError:
    return StreamError(f"{setting}: {problem}; {remedy}", retryable=False)
