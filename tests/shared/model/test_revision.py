from __future__ import annotations

from pathlib import Path

import pytest

from shared.model.revision import digest, generator_revision
from shared.settings import Settings


def revision(folder: Path | str, base_model: str = "base") -> str:
    digest.cache_clear()
    return generator_revision(Settings(adapter=str(folder), base_model=base_model))


def test_a_base_alone_has_a_revision() -> None:
    assert len(revision("")) == 16


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_the_revision_changes_with_the_generator(adapter_folder: Path, name: str) -> None:
    before = revision(adapter_folder)
    assert revision(adapter_folder) == before
    (adapter_folder / name).write_bytes(b'{"r": 8}')
    assert revision(adapter_folder) != before


def test_the_revision_changes_with_the_base(adapter_folder: Path) -> None:
    assert revision(adapter_folder, "base") != revision(adapter_folder, "other")


@pytest.mark.parametrize("name", ["README.md", "training.json", "calibration.json"])
def test_other_files_do_not_change_the_generators_revision(adapter_folder: Path, name: str) -> None:
    before = revision(adapter_folder)
    (adapter_folder / name).write_text("another")
    assert revision(adapter_folder) == before
