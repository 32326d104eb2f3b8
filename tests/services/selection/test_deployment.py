"""The service on a real store, without Ray around it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from services.selection.deployment import Selection
from shared import settings as module
from shared.messages import Candidate, Segment
from shared.settings import Settings

TEXT = "the gene abc binds"


@pytest.fixture
def service(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("BIOBRACKET_REDIS", settings.redis.get_secret_value())
    monkeypatch.setenv("BIOBRACKET_SELECTOR", "")
    monkeypatch.setenv("BIOBRACKET_ADAPTER", "")
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    module.settings.cache_clear()
    made: Any = Selection.func_or_class()
    yield made
    made._batcher.close()
    module.settings.cache_clear()
    logger.handlers[:] = handlers
    logger.setLevel(level)


def candidates(document: str, confidence: float) -> tuple[Candidate, ...]:
    segment = Segment(document_id=document, index=0, start=0, end=len(TEXT), text=TEXT, lang="en")
    return (Candidate(segment=segment, type="protein", start=9, end=12, text="abc", generator_confidence=confidence),)


def test_each_document_gets_its_own_answer_from_a_batch(service: Any) -> None:
    async def burst() -> list[Any]:
        return list(
            await asyncio.gather(*(service.select(candidates(str(i), 0.99 if i % 2 else 0.01)) for i in range(6)))
        )

    assert [len(selected.entities) for selected in asyncio.run(burst())] == [0, 1, 0, 1, 0, 1]
