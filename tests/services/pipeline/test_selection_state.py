from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.pipeline import selection_state as module
from services.pipeline.selection_state import SelectionState, SelectionWatch
from shared.errors import StoreError
from shared.messages import Basis


class Around:
    """Selection and the store. Where an answer is an error, it is raised; where there is none, it does not come."""

    def __init__(self) -> None:
        self.basis: Basis | Exception | None = Basis(index="i1", settings="s")
        self.version: int | Exception = 3
        self.asked = 0

    async def ask(self) -> Basis:
        self.asked += 1
        while self.basis is None:
            await asyncio.sleep(0.001)
        if isinstance(self.basis, Exception):
            raise self.basis
        return self.basis

    def read_version(self) -> int:
        if isinstance(self.version, Exception):
            raise self.version
        return self.version


@contextlib.asynccontextmanager
async def watching(around: Around, every_s: float = 0.001):
    watch = SelectionWatch(around.ask, around.read_version, every_s)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()


async def until(watch: SelectionWatch, state: SelectionState | None) -> None:
    async with asyncio.timeout(60):
        while await watch() != state:
            await asyncio.sleep(0.001)


def test_the_version_is_read_for_each_document_and_selection_asked_now_and_then() -> None:
    async def run() -> None:
        around = Around()
        async with watching(around, every_s=3600) as watch:
            assert await watch() is None  # selection did not answer yet
            await until(watch, SelectionState("s", "i1.3"))
            around.version = 4
            assert await watch() == SelectionState("s", "i1.4")
            assert around.asked == 1

    asyncio.run(run())


def test_an_index_that_changes_is_seen_and_what_is_not_known_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        around = Around()
        async with watching(around) as watch:
            await until(watch, SelectionState("s", "i1.3"))
            around.basis = Basis(index="", settings="s2")
            await until(watch, SelectionState("s2", ".3"))
            around.version = 0
            await until(watch, SelectionState("s2", ""))  # as selection says where there is nothing
            around.basis = RuntimeError("the replica died")
            await until(watch, None)
            around.basis = Basis(index="i2", settings="s")
            await until(watch, SelectionState("s", "i2.0"))
            monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
            around.basis = None
            await until(watch, None)
            assert await watch() is None  # and stays so

    asyncio.run(run())


def test_a_store_that_is_away_is_an_error() -> None:
    async def run() -> None:
        around = Around()
        async with watching(around) as watch:
            await until(watch, SelectionState("s", "i1.3"))
            around.version = StoreError("redis: gone", retryable=True)
            with pytest.raises(StoreError):
                await watch()

    asyncio.run(run())
