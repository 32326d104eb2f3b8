from __future__ import annotations

from pathlib import Path

import pytest

from services.query.config import QueryConfig
from services.query.exposure import is_loopback, problem, ray_problem


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_authentication(host: str) -> None:
    assert is_loopback(host)
    assert problem(host, QueryConfig()) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "biobracket.example", "127.0.0.1.example"])
def test_beyond_loopback_it_is_authentication_or_a_word_of_the_operator(host: str) -> None:
    said = problem(host, QueryConfig()) or ""
    assert "BIOBRACKET_QUERY_API_KEYS" in said
    assert "BIOBRACKET_QUERY_ALLOW_UNAUTHENTICATED" in said
    assert problem(host, QueryConfig(api_keys=Path("keys.json"))) is None
    assert problem(host, QueryConfig(allow_unauthenticated=True)) is None


def test_ray_asks_for_its_token_wherever_it_listens_beyond_loopback() -> None:
    assert ray_problem("127.0.0.1", False, QueryConfig()) is None
    assert ray_problem("192.0.2.1", True, QueryConfig()) is None
    assert ray_problem("192.0.2.1", False, QueryConfig(allow_open_ray=True)) is None
    for config in (QueryConfig(), QueryConfig(api_keys=Path("keys.json"), allow_unauthenticated=True)):
        said = ray_problem("192.0.2.1", False, config) or ""
        assert "RAY_AUTH_MODE=token" in said
        assert "BIOBRACKET_QUERY_ALLOW_OPEN_RAY" in said
