"""Settings of the parsing service."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict

from services.replica_config import RequestReplicaConfig


class ParsingConfig(RequestReplicaConfig):
    """Settings of the parsing service, prefix ``BIOBRACKET_PARSING_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_PARSING_")
