from __future__ import annotations

import pytest

from services.ingest.stalls import StallDetector


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_poll_that_does_not_return_is_a_stall() -> None:
    clock = Clock()
    stalls = StallDetector(60.0, clock)
    clock.now = 59.0
    stalls.look(idle=False, state=0)
    assert stalls.stalled() is None
    clock.now = 61.0
    stalls.look(idle=False, state=0)
    assert "no poll" in (stalls.stalled() or "")
    stalls.polled()
    assert stalls.stalled() is None


@pytest.mark.parametrize(
    ("idle", "moves", "stalled"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_records_that_wait_without_reason_are_a_stall(idle: bool, moves: bool, stalled: bool) -> None:
    clock = Clock()
    stalls = StallDetector(60.0, clock)
    for second in range(0, 200, 10):
        clock.now = float(second)
        stalls.polled()
        stalls.look(idle=idle, state=second if moves else 0)
    assert (stalls.stalled() is not None) is stalled
