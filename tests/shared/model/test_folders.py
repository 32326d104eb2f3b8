from __future__ import annotations

from pathlib import Path

import pytest

from shared.model.folders import adapter_folder
from shared.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("card")
    return tmp_path


def test_the_folder_is_found(folder: Path) -> None:
    assert adapter_folder(Settings(adapter=str(folder))) == folder


def test_no_adapter_is_allowed() -> None:
    assert adapter_folder(Settings(adapter="")) is None


def test_a_missing_folder_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="BIOBRACKET_ADAPTER"):
        adapter_folder(Settings(adapter=str(tmp_path / "none")))
