from __future__ import annotations

import pytest

from services.parsing.labels import LabelReader
from shared.entity_types import TYPES


@pytest.mark.parametrize("key", TYPES)
def test_a_type_is_known_by_key_and_by_name_in_both_languages(key: str) -> None:
    labels = LabelReader(("protein",), "")
    for name in (key, TYPES[key].en, TYPES[key].zh):
        for said in (name, f" {name} ", name.upper(), name.replace(" ", "-"), name.replace("_", " ")):
            assert labels.key(said) == key


def test_what_means_no_type_is_none() -> None:
    labels = LabelReader(("molecule",), "")
    assert [labels.key(name) for name in ("Molecule", "", "prot", "Protein]")] == ["molecule", None, None, None]


@pytest.mark.parametrize(
    ("text", "after_bar", "is_label"),
    [
        ("CD28 binds", " anything", True),
        ("CD28 | CD80", " anything", True),
        ("CD28 | CD80", " CD80", False),
        ("CD28 |CD80", "  cd80 ", False),
        ("CD28 | Protein", " Protein", True),  # asked for
        ("CD28 | Disease", " Disease", False),  # known, but not asked for, and the text says so
        ("a | b", "", False),
    ],
)
def test_a_bar_of_the_text_is_no_label(text: str, after_bar: str, is_label: bool) -> None:
    assert LabelReader(("protein",), text).is_label(after_bar) is is_label


def test_lists_of_names() -> None:
    labels = LabelReader(("protein",), "")
    assert labels.names_in("Protein, DNA") == ["Protein", " DNA"]
    assert labels.names_in("疾病、身体") == ["疾病", "身体"]
    assert labels.names_in("Protein, note") == []
