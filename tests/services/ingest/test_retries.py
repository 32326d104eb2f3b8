from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.ingest.config import IngestConfig
from services.ingest.retries import Crashed, Retries, Stopped
from shared.errors import DocumentError, Overloaded, StoreError
from shared.runtime.metrics import unobserved

CONFIG = IngestConfig(attempts=3, backoff_s=1e-6, backoff_max_s=1e-6)


class Outage(Exception):
    pass


class Death(Exception):
    pass


class OutOfReach(Death):
    """Looks like a death, and is an outage."""


def make() -> Retries:
    return Retries(CONFIG, transient=(Outage, OutOfReach), crashes=(Death,), observe=unobserved)


def tried(errors: Sequence[BaseException], retries: Retries | None = None) -> str:
    """What comes of work that fails so, one error after another, and then succeeds."""
    left = list(errors)

    async def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    async def run() -> str:
        return await (retries or make()).persist("store", work)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "error", [Outage(), OutOfReach(), Overloaded(), StoreError("redis: away", True), asyncio.CancelledError()]
)
def test_an_outage_is_retried_until_it_is_over(error: BaseException) -> None:
    assert tried([error] * 20) == "done"


def test_the_documents_own_error_is_not_retried() -> None:
    with pytest.raises(DocumentError, match="too long"):
        tried([DocumentError("text", "is too long", "split it")])


def test_other_errors_are_tried_so_often() -> None:
    assert tried([ValueError()] * 2) == "done"
    with pytest.raises(DocumentError) as exhausted:
        tried([ValueError("secret")] * 3)
    assert exhausted.value.reason == "exhausted"
    assert "secret" not in str(exhausted.value)


def test_a_death_is_told_at_once() -> None:
    with pytest.raises(Crashed):
        tried([Outage(), Death("secret")])


def test_a_trouble_is_told_while_it_lasts() -> None:
    async def run() -> None:
        retries = make()
        told: list[str | None] = []

        async def work() -> None:
            told.append(retries.trouble())
            if len(told) < 5:
                raise StoreError("redis: away; start it", True) if len(told) % 2 else Outage("secret")

        await retries.persist("store", work)
        assert told == [None, None, None, "redis: away; start it", "store: Outage, tried again"]
        assert retries.trouble() is None
        assert retries.count == 4

    asyncio.run(run())


@pytest.mark.parametrize("last", [ValueError(), Death(), DocumentError("text", "is too long", "split it")])
def test_a_trouble_ends_with_the_work_that_had_it(last: Exception) -> None:
    """Else one bad document would leave the application unready until a good one comes."""
    retries = make()
    with pytest.raises((DocumentError, Crashed)):
        tried([Outage()] * 5 + [last] * CONFIG.attempts, retries)
    assert retries.trouble() is None


def test_a_bad_document_is_no_trouble() -> None:
    async def run() -> None:
        retries = Retries(CONFIG.model_copy(update={"attempts": 9}), transient=(), crashes=(), observe=unobserved)
        told: list[str | None] = []

        async def work() -> None:
            told.append(retries.trouble())
            raise ValueError

        with pytest.raises(DocumentError):
            await retries.persist("process", work)
        assert told == [None] * 9

    asyncio.run(run())


def test_nothing_is_tried_again_once_the_consumer_stops() -> None:
    async def run() -> None:
        retries = make()
        retries.stopping.set()

        async def work() -> None:
            raise Outage

        with pytest.raises(Stopped):
            await retries.persist("store", work)

    asyncio.run(run())
