from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.model.revision import digest, generator_revision
from shared.settings import Settings


@pytest.fixture(autouse=True)
def _forget_revisions() -> Iterator[None]:
    digest.cache_clear()
    yield
    digest.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("card")
    return tmp_path


def revision(folder: Path | str, base_model: str = "base") -> str:
    digest.cache_clear()
    return generator_revision(Settings(adapter=str(folder), base_model=base_model))


def test_a_base_alone_has_a_revision() -> None:
    assert len(revision("")) == 16


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_the_revision_changes_with_the_generator(folder: Path, name: str) -> None:
    before = revision(folder)
    assert revision(folder) == before
    (folder / name).write_bytes(b'{"r": 8}')
    assert revision(folder) != before


def test_the_revision_changes_with_the_base(folder: Path) -> None:
    assert revision(folder, "base") != revision(folder, "other")


@pytest.mark.parametrize("name", ["README.md", "training.json", "calibration.json"])
def test_other_files_do_not_change_the_generators_revision(folder: Path, name: str) -> None:
    before = revision(folder)
    (folder / name).write_text("another")
    assert revision(folder) == before
