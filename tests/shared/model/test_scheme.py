from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.entity_types import DEFAULTS, TYPES
from shared.errors import AdapterError
from shared.messages import LANGS, Lang
from shared.model.folders import PROJECT
from shared.model.revision import digest, generator_revision
from shared.model.scheme import SCHEME_FILE, Guideline, asked_together, check_scheme, guidelines_of, write_scheme
from shared.settings import Settings


def test_an_adapter_without_a_file_is_of_an_older_version_and_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"^adapter: .*no scheme\.json.*0\.2.*reads labelled\.v1: set BIOB"):
        check_scheme(tmp_path)
    check_scheme(None)


def test_a_scheme_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_scheme(tmp_path)
    check_scheme(tmp_path)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("per-type.v1", "per-type.v1"),
        ("labelled.v9", "labelled.v9"),
        ("", "…"),
        (" labelled.v1", "…"),
        ("患者 zq17", "…"),
    ],
)
def test_a_scheme_that_this_version_does_not_know_is_refused(tmp_path: Path, named: str, said: str) -> None:
    (tmp_path / SCHEME_FILE).write_text(json.dumps({"scheme": named}))
    with pytest.raises(AdapterError, match=rf"^adapter: .*`{said}`; this version reads labelled.v1: set BIOBRACKET_"):
        check_scheme(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'"labelled.v1"', b"{}", b"\xff\xfe", b'{"v": 1}', b'{"scheme": 1}'],
)
def test_a_broken_file_is_refused_and_names_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SCHEME_FILE).write_bytes(content)
    with pytest.raises(AdapterError, match=r"^adapter: .*scheme\.json does not name a scheme; copy the adapter again"):
        check_scheme(tmp_path)


def revision(folder: Path) -> str:
    digest.cache_clear()
    base = Settings.model_fields["base_model"].default
    return generator_revision(Settings(adapter=str(folder), base_model=base))


def test_the_revision_changes_with_the_scheme(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    found = [revision(tmp_path)]
    for scheme in ("labelled.v1", "labelled.v2"):
        (tmp_path / SCHEME_FILE).write_text(json.dumps({"scheme": scheme}))
        found.append(revision(tmp_path))
    assert len(set(found)) == len(found)


def test_the_selector_is_calibrated_for_the_adapter() -> None:
    """The calibration of a selector is for a generator, which its name has."""
    models = PROJECT / "models"
    made = revision(models / "gemma-3-270m-biobracket")
    assert (models / "gemma-3-270m-biobracket-selector" / f"calibration-{made}.json").is_file()


GENES, DRUGS, NOTES = (
    Guideline("en", ("protein", "dna")),
    Guideline("en", ("chemical", "disease")),
    Guideline("zh", ("disease", "body", "drug")),
)


def test_guidelines_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert guidelines_of(None) == ()
    write_scheme(tmp_path, [GENES, NOTES])
    assert guidelines_of(tmp_path) == (GENES, NOTES)
    (tmp_path / SCHEME_FILE).write_text(json.dumps({"scheme": "labelled.v1", "guidelines": [["fr", ["protein"]]]}))
    with pytest.raises(AdapterError, match="copy the adapter again"):
        guidelines_of(tmp_path)


@pytest.mark.parametrize(
    ("types", "lang", "groups"),
    [
        (("protein", "dna"), "en", [("protein", "dna")]),
        (("dna",), "en", [("dna",)]),
        (("chemical", "dna", "disease", "protein"), "en", [("dna", "protein"), ("chemical", "disease")]),
        (("disease", "body"), "zh", [("disease", "body")]),
        (("disease", "body", "drug"), "en", [("disease",), ("body", "drug")]),  # the text's language first
        (("protein", "drug", "dna"), "zh", [("drug",), ("protein", "dna")]),
        (("organ", "protein", "tissue"), "en", [("protein",), ("organ", "tissue")]),
    ],
)
def test_types_are_asked_together_that_were_annotated_together(
    types: tuple[str, ...], lang: Lang, groups: list[tuple[str, ...]]
) -> None:
    assert asked_together(types, lang, (GENES, DRUGS, NOTES)) == groups
    assert asked_together(types, lang, ()) == [types]


@given(st.lists(st.sampled_from(sorted(TYPES)), unique=True, min_size=1), st.sampled_from(LANGS), st.data())
def test_every_type_is_asked_for_once_in_the_order_given(types: list[str], lang: Lang, data: st.DataObject) -> None:
    known = st.builds(
        Guideline, st.sampled_from(LANGS), st.lists(st.sampled_from(sorted(TYPES)), unique=True).map(tuple)
    )
    groups = asked_together(types, lang, data.draw(st.lists(known, max_size=5)))
    assert sorted(key for group in groups for key in group) == sorted(types)
    for group in groups:
        assert list(group) == [key for key in types if key in group]


def test_the_default_types_of_a_language_are_asked_for_by_the_guidelines_of_the_default_adapter() -> None:
    """All in one line they are not: it was never trained on texts that are annotated with all of them."""
    guidelines = guidelines_of(PROJECT / "models" / "gemma-3-270m-biobracket")
    assert len(asked_together(DEFAULTS["zh"], "zh", guidelines)) == 1
    assert asked_together(DEFAULTS["en"], "en", guidelines) == [DEFAULTS["en"][2:], DEFAULTS["en"][:2]]
