"""docs/training.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

from training.config import CONFIGS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()


def test_every_configuration_is_named() -> None:
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(
        re.findall(r"^\| `([\w-]+)` \| [^|]*\|$", TEXT, re.MULTILINE)
    )
