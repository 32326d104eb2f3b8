from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.query.auth.authentication import Authentication
from services.query.auth.callers import AuthenticationError, Rejected
from services.query.auth.jwks import UrlKeys
from services.query.config import QueryConfig
from shared.settings import problem
from tests.services.query.auth.conftest import MakeKey
from tests.support.certificates import Issuer


def test_none_is_configured_by_default() -> None:
    assert Authentication.from_config(QueryConfig()) is None


def test_keys_and_tokens_side_by_side(make_key: MakeKey, keys_path: Path, tmp_path: Path) -> None:
    key, issuer, jwks = make_key("read"), Issuer(), tmp_path / "jwks.json"
    jwks.write_bytes(issuer.jwks())
    tokens = {"jwks": str(jwks), "jwt_issuer": issuer.name, "jwt_audience": issuer.audience}
    both = Authentication.from_config(QueryConfig(api_keys=keys_path, **tokens))
    assert both is not None
    assert asyncio.run(both.check(key)).kind == "key"
    assert asyncio.run(both.check(issuer.token())).kind == "jwt"
    for config, credential in (
        (QueryConfig(api_keys=keys_path), issuer.token()),
        (QueryConfig(**tokens), key),
    ):
        one = Authentication.from_config(config)
        assert one is not None
        with pytest.raises(Rejected):
            asyncio.run(one.check(credential))


def test_a_url_is_not_asked_before_a_token_comes() -> None:
    made = Authentication.from_config(
        QueryConfig(jwks="https://127.0.0.1:9/jwks", jwt_issuer="https://a.example", jwt_audience="b")
    )
    assert made is not None
    assert made._tokens is not None
    assert isinstance(made._tokens._keys, UrlKeys)


def test_a_file_that_is_missing_names_its_setting(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="BIOBRACKET_QUERY_API_KEYS"):
        Authentication.from_config(QueryConfig(api_keys=tmp_path / "none"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"JWKS": "http://127.0.0.1/jwks", "JWT_ISSUER": "a", "JWT_AUDIENCE": "b"}, "JWKS"),
        ({"JWKS": "jwks.json"}, "JWT_ISSUER"),
        ({"JWKS": "jwks.json", "JWT_ISSUER": "a"}, "JWT_AUDIENCE"),
        ({"JWT_ALGORITHMS": '["HS256"]'}, "JWT_ALGORITHMS"),
        ({"JWT_ALGORITHMS": '["none"]'}, "JWT_ALGORITHMS"),
        ({"RATE": "many"}, "RATE"),
        ({"FAILED_RATE": ""}, "FAILED_RATE"),
    ],
)
def test_a_setting_that_would_be_unsafe_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], named: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"BIOBRACKET_QUERY_{name}", value)
    with pytest.raises(ValidationError) as error:
        QueryConfig()
    assert (problem(error.value) or "").startswith(f"BIOBRACKET_QUERY_{named}: ")
