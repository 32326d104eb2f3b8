import json
from pathlib import Path

import faiss
import numpy as np
import pytest
from pydantic import ValidationError

from shared.errors import ExemplarError
from shared.model.digests import sha256
from shared.selection.exemplars import building, snapshot, type_files
from shared.selection.exemplars.format import MANIFEST, Exemplar
from tests.support.exemplars import KINDS, build, found_ids, labelled, load, unit

SECRET = "右肺腺癌 of patient Doe"


def name_again(folder):
    """The manifest names the files as they are now, so that what is wrong in them is what is refused."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    for name in manifest["files"]:
        manifest["files"][name] = {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["ivf", "hnsw"])
def test_recall(tmp_path, name):
    vectors, queries = unit(0, 6000, 32, clusters=60), unit(0, 6200, 32, clusters=60)[6000:]
    build(tmp_path / "index", (vectors, labelled(6000)), kind=name, dim=32)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]

    def recall(**options):
        found = load(tmp_path / "index", **options).search("protein", queries, 10).positions
        return np.mean([len({*one} & {*other}) / 10 for one, other in zip(found, exact, strict=True)])

    assert recall() >= 0.8
    if name == "ivf":
        assert recall(nprobe=1) < recall() <= recall(nprobe=10**4) == 1.0


def test_blocks(tmp_path, monkeypatch, kind):
    for module in (building, snapshot):
        monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(type_files, "_LINES_BLOCK", 1000)
    build(tmp_path / "index", (unit(0, 300), labelled(300)), kind=kind)
    index = load(tmp_path / "index")
    index.remove(f"e{i}" for i in range(60, 130))
    index.save(tmp_path / "saved")
    kept = [i for i in range(300) if not 60 <= i < 130]
    saved = load(tmp_path / "saved")
    assert [*saved.ids()] == [f"e{i}" for i in kept]
    assert found_ids(saved, "protein", unit(0, 300)[kept], 1) == [[f"e{i}"] for i in kept]


def test_files_are_mapped(tmp_path, index):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    names = maps.read_text()
    assert all(str(tmp_path / "index" / file) in names for file in ("protein.faiss", "protein.jsonl", "disease.faiss"))


@pytest.mark.parametrize(("name", "damage"), [("faiss", b"none"), ("jsonl", b"\n\n\n\n"), ("jsonl", b"    ")])
def test_corrupt_files_of_the_right_size_are_refused(tmp_path, name, damage):
    build(tmp_path, (unit(0, 200), labelled(200)))
    file = tmp_path / f"protein.{name}"
    whole = file.read_bytes()
    file.write_bytes(damage + whole[4:] if name == "faiss" else whole[:-4] + damage)
    name_again(tmp_path)
    with pytest.raises(ExemplarError, match=r"protein\.faiss (or|and) protein\.jsonl (cannot be read|do not match)"):
        load(tmp_path)


def test_text_is_not_in_messages(tmp_path):
    build(tmp_path / "index", (unit(0, 1), [Exemplar(id="e", type="protein", accepted=True, text=SECRET)]))
    lines = tmp_path / "index" / "protein.jsonl"
    for damage in ('"source": 7', '"source" 77', '"more":"  "'):
        text = lines.read_text(encoding="utf-8")
        lines.write_text(text.replace('"source":""', damage), encoding="utf-8")
        name_again(tmp_path / "index")
        with pytest.raises(ExemplarError, match=r"line 1 of a \.jsonl file: .*index build") as raised:
            load(tmp_path / "index").exemplar("protein", 0)
        assert raised.value.__cause__ is None
        assert "Doe" not in str(raised.value)
        lines.write_text(text, encoding="utf-8")
    with pytest.raises(ValidationError) as refused:
        Exemplar(id="e", type=SECRET, accepted=SECRET, text=[SECRET], wrong=SECRET)
    assert "Doe" not in str(refused.value)


@pytest.mark.parametrize(
    "text", [SECRET, "", 'a\nb\r\u2028c\x00"\\', '"accepted":false}\n{"accepted":false', "🫀", None]
)
def test_any_text_comes_back(tmp_path, text):
    exemplar = Exemplar(id=f"id of {text}", type="protein", accepted=True, text=text)
    build(tmp_path / "index", (unit(0, 2), [exemplar, Exemplar(id="e", type="protein", accepted=False)]))
    index = load(tmp_path / "index")
    assert index.exemplar("protein", 0) == exemplar
    assert index.counts() == {"protein": (1, 1)}
    assert index.remove([exemplar.id]) == 1


def test_ids_with_equal_hashes_are_distinguished(tmp_path, monkeypatch):
    monkeypatch.setattr(type_files, "hash", lambda _: 7, raising=False)
    build(tmp_path / "index", (unit(0, 9), labelled(9)))
    index = load(tmp_path / "index")
    assert index.remove(["e3", "e5", "no"]) == 2
    assert [*index.ids()] == ["e0", "e1", "e2", "e4", "e6", "e7", "e8"]


def test_a_gpu_is_used_if_there_is_one(tmp_path, monkeypatch):
    asked = []

    class OnGpu:
        def __init__(self, index):
            self.index = index

        def search(self, vectors, k):
            asked.append(k)
            return self.index.search(vectors, k)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", lambda _, __, index: OnGpu(index), raising=False)
    monkeypatch.setattr(type_files, "_GPU_MOST", 20)
    for name in KINDS:
        build(tmp_path / name, (unit(0, 200), labelled(200)), kind=name)
        index = load(tmp_path / name)
        assert found_ids(index, "protein", unit(0, 200)[:9], 1) == [[f"e{i}"] for i in range(9)]
        assert index.search("protein", unit(0, 1), 21).positions.shape == (1, 21)  # more than it can give
    assert asked == [1, 1]  # flat and IVF; a graph stays off it
