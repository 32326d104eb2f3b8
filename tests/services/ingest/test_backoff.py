import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.backoff import Backoff

SECONDS = st.floats(0.001, 1000.0)


@given(SECONDS, SECONDS, st.integers(1, 10_000))
def test_a_wait_is_at_least_half_of_the_doubled_one_and_never_longer_than_the_longest(first, longest, failures):
    full = min(longest, first * 2.0 ** min(failures - 1, 30))
    assert 0.5 * full <= Backoff(first, longest).delay(failures) <= full <= longest


def test_waits_grow_until_the_longest(monkeypatch):
    monkeypatch.setattr("random.uniform", lambda least, most: most)
    assert [Backoff(0.2, 1.0).delay(n) for n in range(1, 6)] == pytest.approx([0.2, 0.4, 0.8, 1.0, 1.0])


def test_replicas_do_not_retry_in_step():
    assert len({Backoff(1.0, 9.0).delay(3) for _ in range(20)}) > 1
