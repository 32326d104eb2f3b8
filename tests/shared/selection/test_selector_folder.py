from __future__ import annotations

from pathlib import Path

import pytest

from shared.model.revision import digest, generator_revision
from shared.selection import selector_folder as module
from shared.selection.selector_folder import CALIBRATION_FILE, calibration_file, model_revision, selector_folder
from shared.settings import Settings


def revision(folder: Path | str, base_model: str = "base") -> str:
    digest.cache_clear()
    return model_revision(Settings(adapter=str(folder), base_model=base_model))


def test_no_adapter_is_allowed() -> None:
    assert len(revision("")) == 16


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", CALIBRATION_FILE])
def test_the_revision_changes_with_the_model(adapter_folder: Path, name: str) -> None:
    before = revision(adapter_folder)
    assert revision(adapter_folder) == before
    (adapter_folder / name).write_bytes(b'{"r": 8}')
    assert revision(adapter_folder) != before


def test_the_generator_has_its_own_revision(adapter_folder: Path) -> None:
    settings = Settings(adapter=str(adapter_folder), base_model="base", selector="")
    before = generator_revision(settings)
    (adapter_folder / CALIBRATION_FILE).write_text("{}")
    digest.cache_clear()
    assert generator_revision(settings) == before
    assert model_revision(settings) != before
    (adapter_folder / "adapter_model.safetensors").write_bytes(b"others")
    digest.cache_clear()
    assert generator_revision(settings) != before


def test_auto_finds_our_selector_if_it_was_fitted_to_the_generator(
    adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(module, "_OURS", ours)
    settings = Settings(adapter=str(adapter_folder), base_model="base", selector="auto")
    assert selector_folder(settings) is None
    assert calibration_file(settings) == adapter_folder / CALIBRATION_FILE
    fitted = ours / f"calibration-{generator_revision(settings)}.json"
    fitted.write_text("{}")
    assert selector_folder(settings) == ours
    assert calibration_file(settings) == fitted
    assert selector_folder(settings.model_copy(update={"base_model": "another"})) is None
    assert selector_folder(settings.model_copy(update={"selector": ""})) is None


def test_the_revision_changes_with_the_base(adapter_folder: Path) -> None:
    assert revision(adapter_folder, "base") != revision(adapter_folder, "other")


@pytest.mark.parametrize("name", ["README.md", "training.json"])
def test_card_and_manifest_do_not_change_the_revision(adapter_folder: Path, name: str) -> None:
    before = revision(adapter_folder)
    (adapter_folder / name).write_text("another")
    assert revision(adapter_folder) == before
