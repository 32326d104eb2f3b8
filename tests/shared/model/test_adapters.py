from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.model import adapters, int8
from shared.model.adapters import CALIBRATION_FILE, adapter_folder, model_revision
from shared.model.int8 import Int8Body
from shared.model.packing import Block, Packed, causal
from shared.settings import Settings
from tests.support.tiny import make_tiny_model


@pytest.fixture(autouse=True)
def _forget_revisions() -> Iterator[None]:
    adapters._revision.cache_clear()
    yield
    adapters._revision.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("card")
    return tmp_path


def revision(folder: Path | str, base_model: str = "base") -> str:
    adapters._revision.cache_clear()
    return model_revision(Settings(adapter=str(folder), base_model=base_model))


def test_the_folder_is_found(folder: Path) -> None:
    assert adapter_folder(Settings(adapter=str(folder))) == folder


def test_no_adapter_is_allowed() -> None:
    assert adapter_folder(Settings(adapter="")) is None
    assert len(revision("")) == 16


def test_a_missing_folder_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="BIOBRACKET_ADAPTER"):
        adapter_folder(Settings(adapter=str(tmp_path / "none")))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", CALIBRATION_FILE])
def test_the_revision_changes_with_what_the_model_is(folder: Path, name: str) -> None:
    before = revision(folder)
    assert revision(folder) == before
    (folder / name).write_bytes(b'{"r": 8}')
    assert revision(folder) != before


def test_the_generator_has_a_revision_of_its_own(folder: Path) -> None:
    settings = Settings(adapter=str(folder), base_model="base", selector="")
    before = adapters.generator_revision(settings)
    (folder / CALIBRATION_FILE).write_text("{}")
    adapters._revision.cache_clear()
    assert adapters.generator_revision(settings) == before
    assert model_revision(settings) != before
    (folder / "adapter_model.safetensors").write_bytes(b"others")
    adapters._revision.cache_clear()
    assert adapters.generator_revision(settings) != before


def test_our_selector_is_taken_where_it_was_fitted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(adapters, "_OURS", ours)
    settings = Settings(adapter=str(folder), base_model="base", selector="auto")
    assert adapters.selector_folder(settings) is None
    assert adapters.calibration_file(settings) == folder / CALIBRATION_FILE
    fitted = ours / f"calibration-{adapters.generator_revision(settings)}.json"
    fitted.write_text("{}")
    assert adapters.selector_folder(settings) == ours
    assert adapters.calibration_file(settings) == fitted
    assert adapters.selector_folder(settings.model_copy(update={"base_model": "another"})) is None
    assert adapters.selector_folder(settings.model_copy(update={"selector": ""})) is None


def test_the_revision_changes_with_the_base(folder: Path) -> None:
    assert revision(folder, "base") != revision(folder, "other")


@pytest.mark.parametrize("name", ["README.md", "training.json"])
def test_the_card_and_the_manifest_are_no_part_of_the_revision(folder: Path, name: str) -> None:
    before = revision(folder)
    (folder / name).write_text("another")
    assert revision(folder) == before


def example(body: Any) -> None:
    length = 20
    with torch.inference_mode():
        body(list(range(5, 5 + length)), list(range(length)), [Block(0, length, causal(length))], [0])


def body(settings: Settings, dtype: str, revision: str = "r") -> Any:
    return adapters.load_body(settings, None, revision, dtype, example)


def test_weights_in_8_bits_are_made_once_for_a_base_and_a_revision(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    settings = Settings(base_model=str(base), adapter="", cache=tmp_path / "cache")
    assert isinstance(body(settings, "int8"), Int8Body)
    (made,) = settings.cache.glob("int8-*.safetensors")
    written = made.stat().st_mtime_ns
    body(settings, "int8")
    assert made.stat().st_mtime_ns == written
    body(settings, "int8", "another")
    make_tiny_model(base, seed=3)
    body(settings, "int8")
    assert len(list(settings.cache.glob("int8-*.safetensors"))) == 3


def test_which_number_formats_are_8_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma, other = (
        Settings(base_model=str(make_tiny_model(tmp_path / name, architecture=name)), adapter="", cache=tmp_path / "c")
        for name in ("gemma3", "qwen3")
    )
    for native in (True, False):
        monkeypatch.setattr(int8, "native", lambda native=native: native)
        assert isinstance(body(gemma, "auto"), Int8Body if native else Packed)
        assert isinstance(body(gemma, "int8"), Int8Body)
        assert isinstance(body(gemma, "bfloat16"), Packed)
        assert isinstance(body(other, "auto"), Packed)
    with pytest.raises(ValueError, match=r"^dtype: int8 is for Gemma 3"):
        body(other, "int8")
