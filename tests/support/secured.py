"""Kafka and Redis as a hospital runs them: TLS by a private CA, users, and no rule beyond those of access.py."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import closing
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)
from pydantic import SecretStr

from services.embedded.servers import _free_port
from shared.backends.access import REDIS, kafka_rules, redis_rules
from shared.settings import Settings
from tests.support.certificates import Authority, Issuer
from tests.support.kafka import Kafka
from tests.support.redis_server import RedisServer

PLAIN_USER, PLAIN_PASSWORD = "plain-user", "zq17-plain"
_OPERATIONS = {"Read": "READ", "Write": "WRITE", "Describe": "DESCRIBE", "DescribeConfigs": "DESCRIBE_CONFIGS"}
_JAAS = "org.apache.kafka.common.security"


class SecureKafka(Kafka):
    """Listeners: SASL over TLS (:attr:`sasl`), client certificates (:attr:`mtls`), and one for the administrator alone.

    That one is without TLS, and whoever reaches it may do everything.
    """

    def __init__(self, data: Path, authority: Authority, issuer: Issuer) -> None:
        super().__init__(data)
        self.authority = authority
        self.issuer = issuer
        self.sasl = self.mtls = ""

    def _properties(self, controller: str) -> dict[str, object]:
        self.data.mkdir(parents=True, exist_ok=True)
        certificate, key = self.authority.issue("kafka")
        store = (self.data / "broker.pem").resolve()
        store.write_bytes(key.read_bytes() + certificate.read_bytes())
        keys = (self.data / "jwks.json").resolve()
        keys.write_bytes(self.issuer.jwks())
        self.sasl, self.mtls = (f"127.0.0.1:{_free_port()}" for _ in range(2))
        listeners = f"ADMIN://{self.address},SASL://{self.sasl},MTLS://{self.mtls}"
        listener = "listener.name.sasl"
        return super()._properties(controller) | {
            "listeners": f"{listeners},CONTROLLER://{controller}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "ADMIN:PLAINTEXT,SASL:SASL_SSL,MTLS:SSL,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "ADMIN",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": store,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.authority.file.resolve(),
            "listener.name.mtls.ssl.client.auth": "required",
            f"{listener}.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN,OAUTHBEARER",
            f"{listener}.scram-sha-512.sasl.jaas.config": f"{_JAAS}.scram.ScramLoginModule required;",
            f"{listener}.plain.sasl.jaas.config": f"{_JAAS}.plain.PlainLoginModule required "
            f'user_{PLAIN_USER}="{PLAIN_PASSWORD}";',
            f"{listener}.oauthbearer.sasl.jaas.config": f"{_JAAS}.oauthbearer.OAuthBearerLoginModule required;",
            f"{listener}.oauthbearer.sasl.server.callback.handler.class": f"{_JAAS}.oauthbearer."
            "OAuthBearerValidatorCallbackHandler",
            # Kafka 4.1's default checks no signature, issuer or audience.
            "sasl.oauthbearer.jwt.validator.class": f"{_JAAS}.oauthbearer.BrokerJwtValidator",
            f"{listener}.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": keys.as_uri(),
            f"{listener}.oauthbearer.sasl.oauthbearer.expected.audience": self.issuer.audience,
            f"{listener}.oauthbearer.sasl.oauthbearer.expected.issuer": self.issuer.name,
            f"{listener}.oauthbearer.connections.max.reauth.ms": 3_600_000,
        }

    def _java(self, megabytes: int) -> list[str]:
        java, *options = super()._java(megabytes)
        allowed = (self.data / "jwks.json").resolve().as_uri()
        return [java, f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={allowed}", *options]

    def add_user(self, user: str, password: str) -> None:
        """A user of SCRAM-SHA-512, or another password for one."""
        with closing(self._admin()) as admin:
            admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, "SCRAM-SHA-512", password)])

    def allow(self, user: str, settings: Settings, group: str, *services: str) -> None:
        """Gives a user the rules of services."""
        wanted = {rule for service in services for rule in kafka_rules(settings, group, service)}
        rules = [
            ACL(
                f"User:{user}",
                "*",
                ACLOperation[_OPERATIONS[operation]],
                ACLPermissionType.ALLOW,
                ResourcePattern(ResourceType[kind.upper()], name),
            )
            for kind, name, operation in sorted(wanted)
        ]
        with closing(self._admin()) as admin:
            admin.create_acls(rules)

    def settings(self, topics: Settings, **others: Any) -> Settings:
        """Those of a user who logs in over TLS, with topics (and the rest) of other settings."""
        given = {"kafka": self.sasl, "kafka_protocol": "SASL_SSL", "kafka_ca": self.authority.file}
        return topics.model_copy(update=given | others)

    def _admin(self) -> Any:
        return KafkaAdminClient(bootstrap_servers=self.address)


class SecureRedis(RedisServer):
    """Redis behind TLS that asks for client certificates, with users of an ACL file. It keeps nothing.

    Its administrator, of :attr:`url`, comes over a port without TLS.
    """

    def __init__(self, data: Path, authority: Authority, *, certificates: bool = False) -> None:
        super().__init__(data, durable=False)
        self.authority = authority
        self.tls_port = 0
        # Of `contract` those of all services.
        self.rules = {name: redis_rules(rule) for name, rule in REDIS.items()} | {
            "contract": redis_rules(*REDIS.values())
        }
        self.passwords = {name: f"zq17 {secrets.token_urlsafe(12)}/#?@:%" for name in self.rules}
        self._certificates = certificates

    def _command(self) -> list[str]:
        binary, config = super()._command()
        certificate, key = self.authority.issue("redis")
        self.tls_port = _free_port()
        users = self.data / "users.acl"
        users.write_text(
            f"user default on #{_sha256(self.password)} ~* &* +@all\n"
            + "".join(
                f"user {name} on #{_sha256(self.passwords[name])} {rules}\n" for name, rules in self.rules.items()
            )
        )
        lines = Path(config).read_text().splitlines()
        more = {
            "aclfile": users.name,
            "tls-port": self.tls_port,
            "tls-cert-file": certificate.resolve(),
            "tls-key-file": key.resolve(),
            "tls-ca-cert-file": self.authority.file.resolve(),
            "tls-auth-clients": "yes" if self._certificates else "no",
        }
        kept = [line for line in lines if not line.startswith("requirepass")]
        Path(config).write_text("\n".join([*kept, *(f"{name} {value}" for name, value in more.items()), ""]))
        return [binary, config]

    def settings(self, service: str, folder: Path, **others: Any) -> Settings:
        """Those of a service, with its password in a file."""
        file = folder / f"redis-{service}"
        file.write_text(self.passwords[service] + "\n")
        given: dict[str, Any] = {
            "service": service,
            "redis": SecretStr(f"rediss://{{service}}@127.0.0.1:{self.tls_port}/0"),
            "redis_ca": self.authority.file,
            "redis_password_file": folder / "redis-{service}",
        }
        return Settings(**given | others)


def _sha256(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()
