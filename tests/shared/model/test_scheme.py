from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from shared.errors import AdapterError
from shared.model.folders import PROJECT
from shared.model.revision import digest, generator_revision
from shared.model.scheme import SCHEME_FILE, Scheme, scheme_of, write_scheme
from shared.settings import Settings


def test_an_adapter_without_a_file_is_of_the_scheme_before_there_was_one(tmp_path: Path) -> None:
    assert scheme_of(tmp_path) == "per-type.v1"
    assert scheme_of(None) == "per-type.v1"


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_a_scheme_is_read_as_it_was_written(tmp_path: Path, scheme: Scheme) -> None:
    write_scheme(tmp_path, scheme)
    assert scheme_of(tmp_path) == scheme


@pytest.mark.parametrize("named", ["labelled.v9", "", " labelled.v1", 1, None])
def test_a_scheme_that_this_version_does_not_know_is_refused(tmp_path: Path, named: object) -> None:
    write_scheme(tmp_path, named)  # type: ignore[arg-type]
    with pytest.raises(AdapterError, match=rf"^adapter: .*`{named}`; this version reads labelled.v1 and per-type.v1"):
        scheme_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"labelled.v1"', b"{}", b"\xff\xfe", b'{"v": 1}'])
def test_a_broken_file_is_refused_and_names_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SCHEME_FILE).write_bytes(content)
    with pytest.raises(AdapterError, match=r"^adapter: .*scheme\.json does not name a scheme; copy the adapter again"):
        scheme_of(tmp_path)


def revision(folder: Path) -> str:
    digest.cache_clear()
    base = Settings.model_fields["base_model"].default
    return generator_revision(Settings(adapter=str(folder), base_model=base))


def test_the_revision_changes_with_the_scheme(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    found = [revision(tmp_path)]
    for scheme in get_args(Scheme):
        write_scheme(tmp_path, scheme)
        found.append(revision(tmp_path))
    assert len(set(found)) == len(found)


def test_the_selector_is_calibrated_for_the_adapter() -> None:
    """The calibration of a selector is for a generator, which its name has."""
    models = PROJECT / "models"
    made = revision(models / "gemma-3-270m-biobracket")
    assert (models / "gemma-3-270m-biobracket-selector" / f"calibration-{made}.json").is_file()


def test_adapters_older_than_the_file_keep_their_revision(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    assert revision(tmp_path) == "893678a3f7a953b0"
