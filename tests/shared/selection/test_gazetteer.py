import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from shared.errors import SelectorError
from shared.selection.gazetteer import GAZETTEER_FILE, Gazetteer, WordCounts

GIVEN = Gazetteer(
    {"one": ("protein", "dna"), "two": ("protein",)},
    {"protein": WordCounts.of({"il-2": 3, "p53": 1}), "dna": WordCounts.of({"il-2gene": 2})},
    {"one": WordCounts.of({"il-2": 5, "il-2gene": 2, "cells": 9}), "two": WordCounts.of({"cells": 4, "p53": 1})},
)


@pytest.mark.parametrize(
    ("type_", "text", "counts"),
    [
        ("protein", "IL-2", (3, 2)),
        ("protein", "il -\n2", (3, 2)),
        ("dna", "IL-2", (0, 5)),
        ("dna", "IL-2 gene", (2, 0)),
        # Of the corpora that annotate the type.
        ("protein", "cells", (0, 13)),
        ("dna", "cells", (0, 9)),
        ("protein", "never seen", (0, 0)),
        ("disease", "cells", (0, 0)),
    ],
)
def test_counts_ignore_case_and_white_space(tmp_path, type_, text, counts):
    GIVEN.save(tmp_path)
    loaded = Gazetteer.load(tmp_path)
    for gazetteer in (GIVEN, loaded):
        assert gazetteer.counts(type_, text) == counts
        assert gazetteer.log_odds(type_, text) == math.log1p(counts[0]) - math.log1p(counts[1])
    assert len(loaded) == len(GIVEN) == 5


def test_the_file_contains_no_words(tmp_path):
    GIVEN.save(tmp_path)
    content = (tmp_path / GAZETTEER_FILE).read_bytes()
    assert not any(words in content for words in (b"il-2", b"p53", b"cells"))


@given(st.dictionaries(st.text(max_size=5), st.integers(1, 2**32 - 1)))
def test_every_count_can_be_looked_up(counted):
    from shared.selection.gazetteer import key

    counts = WordCounts.of(counted)
    assert {words: counts.get(key(words)) for words in counted} == counted
    assert counts.get(key("longer than five")) == 0


def test_a_missing_and_an_invalid_file(tmp_path):
    assert Gazetteer.load(tmp_path) is None
    for content in (b"", b"not one", (2).to_bytes(8, "little") + b"{}"):
        (tmp_path / GAZETTEER_FILE).write_bytes(content)
        with pytest.raises(SelectorError, match=r"gazetteer\.safetensors.*biobracket train gazetteer"):
            Gazetteer.load(tmp_path)


@pytest.mark.parametrize(
    "corpora",
    ["[" * 100_000, "null", "[]", '{"c": 1}', "9" * 5000],
    ids=["nested", "null", "list", "number", "digits"],
)
def test_what_its_metadata_say_is_refused_where_it_cannot_be(tmp_path, corpora):
    Gazetteer({"c": ("disease",)}, {"disease": WordCounts.of({"x": 2})}, {"c": WordCounts.of({"x": 3})}).save(tmp_path)
    file = tmp_path / GAZETTEER_FILE
    with safe_open(file, "np") as opened:
        kept, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    save_file(kept, file, dict.fromkeys(metadata, corpora))
    with pytest.raises(SelectorError, match="gazetteer"):
        Gazetteer.load(tmp_path)
