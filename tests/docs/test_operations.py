"""docs/operations.md against the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from shared.backends.records import DeadLetterReason
from shared.runtime.metrics import METRICS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()


def test_every_dead_letter_reason_is_explained() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)` \| .* \| .* \|$", TEXT, re.MULTILINE)) == set(get_args(DeadLetterReason))


@pytest.mark.parametrize("name", re.findall(r"ray_(biobracket_\w+?)(?:_total)?`", TEXT))
def test_metrics_exist(name: str) -> None:
    assert name in {metric.name for metric in METRICS}
