import numpy as np
import pytest
from pydantic import ValidationError

from shared.errors import ExemplarError, first_problem
from shared.selection.exemplars.format import MANIFEST, Exemplar, Manifest
from tests.support.exemplars import DIM, build, found_ids, labelled, load, unit


@pytest.mark.parametrize("type_", ["../up", "Protein", "a b", "", "x\n"])
def test_a_type_can_name_a_file(type_):
    with pytest.raises(ValidationError):
        Exemplar(id="e", type=type_, accepted=True)


@pytest.mark.parametrize(
    ("vectors", "named"),
    [
        (unit(0, 3, DIM + 1), rf"vectors: shape \(3, 17\); give \(3, {DIM}\)"),
        (unit(0, 2), rf"vectors: shape \(2, 16\); give \(3, {DIM}\)"),
        (unit(0, 3)[0], r"vectors: shape \(16,\)"),
        (unit(0, 3) * [[1], [1.01], [1]], "vectors: row 1 has norm 1.01; divide"),
        (unit(0, 3) * [[1], [1], [0]], "vectors: row 2 has norm 0;"),
        (unit(0, 3) * [[1], [np.nan], [1]], "vectors: some are not finite; "),
        (unit(0, 3) * [[1], [np.inf], [1]], "vectors: some are not finite; "),
    ],
)
def test_bad_vectors_are_refused(tmp_path, vectors, named):
    with pytest.raises(ExemplarError, match=named):
        build(tmp_path / "new", (vectors, labelled(3)))
    build(tmp_path / "index", (unit(0, 3), labelled(3)))
    index = load(tmp_path / "index")
    with pytest.raises(ExemplarError, match=named):
        index.add(vectors, labelled(3))
    assert len(index) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_vectors_of_another_dimension_are_refused(index):
    with pytest.raises(ExemplarError, match="vectors: shape"):
        index.search("protein", unit(0, 3, DIM + 1), 1)
    with pytest.raises(ExemplarError, match="norm"):
        index.search("protein", 2 * unit(0, 3), 1)


def test_nearly_normalised_vectors_of_other_float_types_are_accepted(tmp_path):
    build(tmp_path / "index", (unit(0, 3).astype(np.float16), labelled(3)))
    assert found_ids(load(tmp_path / "index"), "protein", unit(0, 3).astype(np.float64), 1) == [["e0"], ["e1"], ["e2"]]


@pytest.mark.parametrize("manifest", [None, "not json", "{}", '{"version": 2}', "[]"])
def test_an_invalid_index_is_refused(tmp_path, manifest):
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(ExemplarError, match=f"{MANIFEST}.*; build it again with `biobracket index build`"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["患者 zq17", "x" * 129, "a/b", "a\x00", ""])
def test_a_manifest_names_files_as_ours_are_named(name):
    given = {"kind": "flat", "dim": 4, "encoder": "0" * 16, "flat_below": 0}
    given["files"] = {name: {"size": 1, "sha256": "0" * 64}}
    with pytest.raises(ValidationError) as caught:
        Manifest.model_validate(given)
    assert "zq17" not in first_problem(caught.value)
