import ctypes
import json

import faiss
import pytest

from shared.errors import ExemplarError
from shared.selection.exemplars.format import MANIFEST
from shared.selection.exemplars.index import ExemplarIndex
from tests.support.exemplars import CLASSES, DIM, ENCODER, build, found_ids, labelled, load, unit


def test_indexes_have_the_requested_kind_and_small_types_are_flat(tmp_path, index, kind):
    assert isinstance(faiss.read_index(str(tmp_path / "index" / "protein.faiss")), CLASSES[kind])
    assert isinstance(faiss.read_index(str(tmp_path / "index" / "disease.faiss")), faiss.IndexFlatIP)


def test_batches_are_read_one_at_a_time(tmp_path):
    progress = []

    def batches():
        for n in range(5):
            assert progress == [10 * (m + 1) for m in range(n)]  # the one before is done with
            yield unit(n, 10), labelled(10, prefix=f"{n}-")

    build_from = {"kind": "flat", "encoder": ENCODER, "dim": DIM, "progress": progress.append}
    ExemplarIndex.build(tmp_path / "index", batches(), **build_from)
    assert progress[-1] == 50 == len(load(tmp_path / "index"))


def test_the_old_index_stays_until_the_new_one_is_complete(tmp_path):
    folder = tmp_path / "index"
    build(folder, (unit(0, 5), labelled(5)))
    old = load(folder)

    def batches():
        yield unit(1, 3), labelled(3, prefix="new")
        assert len(load(folder)) == 5
        yield unit(2, 1), labelled(1, prefix="newer")

    ExemplarIndex.build(folder, batches(), kind="flat", encoder=ENCODER, dim=DIM)
    assert len(load(folder)) == 4
    assert found_ids(old, "protein", unit(0, 5), 1) == [[f"e{i}"] for i in range(5)]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_failed_build_leaves_the_old_index_and_no_leftovers(tmp_path):
    folder = tmp_path / "index"
    build(folder, (unit(0, 5), labelled(5)))

    def batches():
        yield unit(1, 3), labelled(3)
        raise OSError("the encoder went away")

    with pytest.raises(OSError, match="went away"):
        ExemplarIndex.build(folder, batches(), kind="flat", encoder=ENCODER, dim=DIM)
    assert len(load(folder)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_replacing_a_folder_without_renameat2(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    for n in (5, 3):
        build(tmp_path / "index", (unit(0, n), labelled(n)))
        assert len(load(tmp_path / "index")) == n
        assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExemplarError, match=rf"no index: {MANIFEST}.*name another folder"):
        build(tmp_path, (unit(0, 5), labelled(5)))
    (tmp_path / MANIFEST).write_text('{"steps": 100}')  # as a folder of training has it
    with pytest.raises(ExemplarError, match=rf"{MANIFEST}: .*name another folder"):
        build(tmp_path, (unit(0, 5), labelled(5)))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_duplicate_ids_are_refused(tmp_path):
    with pytest.raises(ExemplarError, match="id: exemplar 7, counted from 0"):
        build(tmp_path / "index", (unit(0, 5), labelled(5)), (unit(1, 5), labelled(2, prefix="f") + labelled(5)[2:]))


@pytest.mark.parametrize(
    ("options", "named"), [({"kind": "annoy"}, "kind"), ({"encoder": "main"}, "encoder"), ({"dim": 0}, "dim")]
)
def test_bad_options_are_named_before_anything_is_read(tmp_path, options, named):
    with pytest.raises(ExemplarError, match=f"^{named}: "):
        ExemplarIndex.build(
            tmp_path / "index",
            (pytest.fail("was read") for _ in [0]),
            **{"kind": "flat", "encoder": ENCODER, "dim": DIM, **options},
        )


def test_the_manifest_is_indented_json(tmp_path):
    build(tmp_path / "index", (unit(0, 3), labelled(3)), kind="hnsw")
    manifest = json.loads((tmp_path / "index" / MANIFEST).read_text())
    assert manifest["types"] == {"protein": {"count": 3, "accepted": 2}}
    assert all(len(file["sha256"]) == 64 for file in manifest["files"].values())
