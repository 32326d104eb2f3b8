from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.query.auth import key_file
from services.query.auth.scopes import Scope

MakeKey = Callable[..., str]


@pytest.fixture
def keys_path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "api-keys.json"


@pytest.fixture
def make_key(keys_path: Path) -> MakeKey:
    """Makes a key with some scopes in the file."""

    def make(*scopes: Scope, caller: str = "ward-3") -> str:
        return key_file.create(keys_path, caller, scopes, 0, datetime.now(UTC))[0]

    return make
