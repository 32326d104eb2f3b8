"""The sentences with types of the other language's corpora are a corpus, and its types are what they say."""

from pathlib import Path

import pytest

from shared.entity_types import DEFAULTS
from shared.text.language import detect
from training.data.corpora import read

FOLDER = Path(__file__).parents[2] / "examples" / "across"


@pytest.mark.parametrize(("lang", "other"), [("en", "zh"), ("zh", "en")])
def test_the_types_are_those_of_the_other_language(lang, other):
    examples = read(FOLDER / lang, "test")
    assert len(examples) == 20
    assert all(example.lang == lang == detect(example.text) for example in examples)
    assert {m.type for e in examples for m in e.mentions} <= set(DEFAULTS[other])
