from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.model.revision import digest


@pytest.fixture
def adapter_folder(tmp_path: Path) -> Iterator[Path]:
    """An adapter's folder with its card, whose revision nobody remembers."""
    digest.cache_clear()
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("card")
    yield tmp_path
    digest.cache_clear()
