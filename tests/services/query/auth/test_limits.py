from __future__ import annotations

import pytest

from services.query.auth.limits import Limits, TooMany, network


def test_each_caller_has_its_own_rate() -> None:
    limits = Limits(rate="3/hour", concurrent=1, failures="2/hour")
    for _ in range(3):
        limits.count("a")
    with pytest.raises(TooMany) as error:
        limits.count("a")
    assert 1 <= error.value.retry_after_s <= 3600
    assert "BIOBRACKET_QUERY_RATE" in error.value.remedy
    limits.count("b")


def test_requests_at_once() -> None:
    limits = Limits(rate="3/hour", concurrent=2, failures="2/hour")
    with limits.under_way("a"), limits.under_way("b"), limits.under_way("a"), pytest.raises(TooMany):
        limits.under_way("a").__enter__()
    with limits.under_way("a"), pytest.raises(KeyError), limits.under_way("a"):
        raise KeyError
    assert not limits._under_way


def test_failures_are_counted_by_client() -> None:
    limits = Limits(rate="3/hour", concurrent=1, failures="2/hour")
    for address in ("2001:db8::1", "2001:db8::2"):
        limits.failed(address)
    with pytest.raises(TooMany):
        limits.failed("2001:db8::ffff")
    limits.failed("2001:db8:0:1::1")


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("unknown", "unknown"),
    ],
)
def test_clients(address: str, client: str) -> None:
    assert network(address) == client
