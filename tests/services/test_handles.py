"""What becomes of a call whose caller is gone; on Serve itself: tests/services/test_app_limits.py."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from services.handles import answer


class Response:
    """Like Serve's: cancelling who awaits it does not cancel the request."""

    def __init__(self) -> None:
        self.result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, str]:
        return asyncio.shield(self.result).__await__()

    def cancel(self) -> None:
        self.cancelled = True


def test_answers_and_errors_arrive() -> None:
    async def ask() -> None:
        right, wrong = Response(), Response()
        right.result.set_result("done")
        wrong.result.set_exception(KeyError("k"))
        assert await answer(right) == "done"
        with pytest.raises(KeyError):
            await answer(wrong)
        assert not right.cancelled
        assert not wrong.cancelled

    asyncio.run(ask())


def test_a_caller_that_gives_up_cancels_the_call() -> None:
    async def give_up() -> None:
        response = Response()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(answer(response), 0.01)
        assert response.cancelled

    asyncio.run(give_up())
