"""docs/training.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

from training.config import CONFIGS, CorpusConfig, GeneratorConfig, RunConfig, SelectorConfig

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()


def test_tables_have_every_field_with_its_description() -> None:
    run = RunConfig.model_fields
    expected = [(name, field.description) for name, field in run.items()]
    for config in (GeneratorConfig, SelectorConfig, CorpusConfig):
        own = {name: field for name, field in config.model_fields.items() if repr(field) != repr(run.get(name))}
        expected += [(name, field.description) for name, field in own.items()]
    assert re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", TEXT, re.MULTILINE) == expected


def test_every_configuration_is_named() -> None:
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(
        re.findall(r"^\| `([\w-]+)` \| [^|]*\|$", TEXT, re.MULTILINE)
    )
