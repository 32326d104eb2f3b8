from __future__ import annotations

from pathlib import Path

import pytest

from services.query.config import QueryConfig
from services.query.exposure import is_loopback, problem


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
