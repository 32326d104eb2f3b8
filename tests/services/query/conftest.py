from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.http import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    with made.client:
        yield made
