"""Settings of the query service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import limits
from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from services.replica_config import (
    MaxOngoingRequests,
    MaxQueuedRequests,
    MaxReplicas,
    NumCpus,
    RequestReplicaConfig,
    TargetOngoingRequests,
)

# Asymmetric ones alone: with any other, whoever can check a token could make one.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class QueryConfig(RequestReplicaConfig):
    """Settings of the query service, prefix ``BIOBRACKET_QUERY_``."""

    model_config = SettingsConfigDict(env_prefix="BIOBRACKET_QUERY_")

    max_replicas: MaxReplicas = 2
    num_cpus: NumCpus = 0.25
    max_ongoing_requests: MaxOngoingRequests = 128
    target_ongoing_requests: TargetOngoingRequests = 16.0
    max_queued_requests: MaxQueuedRequests = 128

    max_extractions: int = Field(
        default=64,
        ge=1,
        description="Extractions that a replica has under way; a further one gets a 503 at once. Fewer than "
        "`max_ongoing_requests`, so that results and probes are answered in a flood of them.",
    )

    max_body_bytes: int = Field(
        default=16 * 2**20, ge=1024, description="Largest request body, in bytes; a larger one gets a 413."
    )
    probe_s: float = Field(default=5.0, gt=0, description="Seconds that /readyz waits for each part of the system.")
    timeout_s: float = Field(
        default=300.0, gt=0, description="Seconds that one extraction may take; a slower one gets a 504."
    )
    max_mentions: int = Field(default=1000, ge=1, description="Most mentions that one request may ask for.")

    # Who may call
    api_keys: Path | None = Field(
        default=None,
        description="JSON file of API keys, which `biobracket keys` writes and this service reads; a change counts at "
        "once. Without it and `jwks` there is no authentication.",
    )
    jwks: str = Field(
        default="",
        description="JWKS with the public keys of JSON Web Tokens: a file, or an https URL; empty: none is accepted.",
    )
    jwt_issuer: str = Field(default="", description="Issuer (`iss`) that tokens must have; needed with `jwks`.")
    jwt_audience: str = Field(default="", description="Audience (`aud`) that tokens must have; needed with `jwks`.")
    jwt_algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "PS256", "ES256", "EdDSA"),
        min_length=1,
        description="JSON list of the algorithms that tokens may be signed by; only asymmetric ones exist here.",
    )
    jwt_leeway_s: float = Field(
        default=30.0, ge=0, le=300, description="Seconds by which the clocks of issuer and server may differ."
    )
    jwt_ca: Path | None = Field(
        default=None, description="PEM file of the certificates to trust for `jwks`; empty: the system's."
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="Whether the server may listen beyond loopback without authentication, because something else "
        "keeps strangers out.",
    )
    allow_open_ray: bool = Field(
        default=False,
        description="Whether Ray may listen beyond loopback without its token authentication, because something else "
        "keeps strangers out: whoever reaches it runs code.",
    )
    rate: str = Field(
        default="6000/minute",
        description="Requests that a caller may send a replica, as `NUMBER/second`, `/minute` or `/hour`; more get a "
        "429. With authentication only.",
    )
    max_caller_requests: int = Field(
        default=32,
        ge=1,
        description="Requests that a caller may have under way at a replica; a further one gets a 429. Fewer than "
        "`max_extractions`, so that one caller cannot keep the others out. With authentication only.",
    )
    failed_rate: str = Field(
        default="30/minute",
        description="Credentials that are not accepted, of one address at a replica, before a 429 takes the place of "
        "the 401 and of the line in the log.",
    )

    @property
    def authenticates(self) -> bool:
        """Whether callers have to authenticate."""
        return self.api_keys is not None or bool(self.jwks)

    @field_validator("jwks")
    @classmethod
    def _is_no_plain_url(cls, value: str) -> str:
        if "://" in value and not value.startswith("https://"):
            raise ValueError("is a URL of another kind than https, whose keys anybody on the way could replace")
        return value

    @field_validator("jwt_issuer", "jwt_audience")
    @classmethod
    def _is_there_with_keys(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("jwks") and not value:
            raise ValueError("is needed with BIOBRACKET_QUERY_JWKS: else tokens for other services would be accepted")
        return value

    @field_validator("rate", "failed_rate")
    @classmethod
    def _is_a_rate(cls, value: str) -> str:
        try:
            limits.parse(value)
        except ValueError:
            raise ValueError("is no rate; write 600/minute, for example") from None
        return value
