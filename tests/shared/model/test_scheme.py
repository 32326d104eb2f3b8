from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import AdapterError
from shared.model.folders import PROJECT
from shared.model.revision import digest, generator_revision
from shared.model.scheme import SCHEME_FILE, check_scheme, write_scheme
from shared.settings import Settings


def test_an_adapter_without_a_file_is_of_an_older_version_and_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"^adapter: .*no scheme\.json.*0\.2.*reads labelled\.v1: set BIOB"):
        check_scheme(tmp_path)
    check_scheme(None)


def test_a_scheme_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_scheme(tmp_path)
    check_scheme(tmp_path)


@pytest.mark.parametrize("named", ["per-type.v1", "labelled.v9", "", " labelled.v1", 1, None])
def test_a_scheme_that_this_version_does_not_know_is_refused(tmp_path: Path, named: object) -> None:
    (tmp_path / SCHEME_FILE).write_text(json.dumps({"scheme": named}))
    with pytest.raises(AdapterError, match=rf"^adapter: .*`{named}`; this version reads labelled.v1: set BIOBRACKET_"):
        check_scheme(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"labelled.v1"', b"{}", b"\xff\xfe", b'{"v": 1}'])
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
