from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest import breaker as module
from services.ingest.breaker import Breaker


@given(outcomes=st.lists(st.booleans(), max_size=40), run=st.integers(0, 6), share=st.sampled_from([0.0, 0.3, 0.5]))
def test_it_opens_at_a_run_and_at_a_share(outcomes: list[bool], run: int, share: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", 10)
        breaker = Breaker(run, share)
        for n, dead in enumerate(outcomes, 1):
            in_a_row = next((place for place, each in enumerate(reversed(outcomes[:n])) if not each), n)
            last = outcomes[max(0, n - 10) : n]
            expected = bool(run and in_a_row >= run) or bool(share and len(last) == 10 and sum(last) > share * 10)
            assert (breaker.count(dead=dead) is not None) is expected
        breaker.reset()
        assert breaker.count(dead=False) is None


def test_it_says_why() -> None:
    breaker = Breaker(2, 0.0)
    breaker.count(dead=True)
    assert breaker.count(dead=True) == "2 records in a row went to the dead letters"
