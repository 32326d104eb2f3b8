from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from shared.model import products
from shared.model.attention import Block
from shared.model.body import Packed
from shared.model.int8 import Int8Body
from shared.model.loading import load_body, load_merged
from shared.model.masks import causal
from shared.settings import Settings
from tests.support.tiny import make_tiny_model


def example(body: Any) -> None:
    length = 20
    with torch.inference_mode():
        body(list(range(5, 5 + length)), list(range(length)), [Block(0, length, causal(length))], [0])


def body(settings: Settings, dtype: str, revision: str = "r") -> Any:
    return load_body(settings, None, revision, dtype, example)


def test_int8_weights_are_made_once_per_base_and_revision(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    settings = Settings(base_model=str(base), adapter="", cache=tmp_path / "cache")
    assert isinstance(body(settings, "int8"), Int8Body)
    (made,) = settings.cache.glob("int8-*.safetensors")
    written = made.stat().st_mtime_ns
    body(settings, "int8")
    assert made.stat().st_mtime_ns == written
    os.utime(base / "model.safetensors", (0, 0))  # as of a copy, such as an image's
    body(settings, "int8")
    assert list(settings.cache.glob("int8-*.safetensors")) == [made]
    body(settings, "int8", "another")
    make_tiny_model(base, seed=3)
    body(settings, "int8")
    assert len(list(settings.cache.glob("int8-*.safetensors"))) == 3


def test_which_dtypes_give_an_int8_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma, other = (
        Settings(base_model=str(make_tiny_model(tmp_path / name, architecture=name)), adapter="", cache=tmp_path / "c")
        for name in ("gemma3", "qwen3")
    )
    for fast in (True, False):
        monkeypatch.setattr(products, "prefers_int8", lambda _, fast=fast: fast)
        assert isinstance(body(gemma, "auto"), Int8Body if fast else Packed)
        assert isinstance(body(gemma, "int8"), Int8Body)
        assert isinstance(body(gemma, "bfloat16"), Packed)
        assert isinstance(body(other, "auto"), Packed)
    with pytest.raises(ValueError, match=r"^dtype: int8 needs Gemma 3"):
        body(other, "int8")


def test_the_fastest_float_is_taken_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(base_model=str(make_tiny_model(tmp_path / "b")), adapter="", cache=tmp_path / "c")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("float32", "bfloat16"):
        monkeypatch.setattr(products, "fastest_float", lambda _, name=name: name)
        assert load_merged(settings, None).dtype == getattr(torch, name)
