import ctypes
import json
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.selection import exemplars as module
from shared.selection.exemplars import MANIFEST, Exemplar, ExemplarError, ExemplarIndex

ENCODER = "0123456789abcdef"
DIM = 16
KINDS = ("flat", "ivf", "hnsw")
CLASSES = {"flat": faiss.IndexFlatIP, "ivf": faiss.IndexIVFFlat, "hnsw": faiss.IndexHNSWFlat}
SECRET = "右肺腺癌 of patient Doe"


def unit(seed, n, dim=DIM, clusters=0):
    """Vectors of norm 1, clustered around ``centres`` if given."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    if clusters:
        vectors = rng.standard_normal((clusters, dim), dtype=np.float32)[rng.integers(clusters, size=n)] + vectors / 3
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def labelled(n, type_="protein", prefix="e"):
    return [
        Exemplar(id=f"{prefix}{i}", type=type_, accepted=i % 3 > 0, text=f"mention {i}", source="genia", time=i)
        for i in range(n)
    ]


def build(folder, *batches, kind="flat", dim=DIM, flat_below=100, **options):
    return ExemplarIndex.build(folder, batches, kind=kind, encoder=ENCODER, dim=dim, flat_below=flat_below, **options)


def load(folder, **options):
    return ExemplarIndex.load(folder, encoder=ENCODER, **options)


def found_ids(index, type_, vectors, k):
    positions = index.search(type_, vectors, k).positions
    return [[index.exemplar(type_, at).id for at in row if at >= 0] for row in positions]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def index(tmp_path, kind):
    """400 proteins, indexed by the kind, and 20 diseases, too few for it."""
    build(
        tmp_path / "index",
        (unit(0, 250, clusters=8), labelled(250)),
        (unit(1, 170, clusters=8), labelled(20, "disease", "d") + labelled(150, prefix="f")),
        kind=kind,
    )
    return load(tmp_path / "index", check=True)


def proteins():
    return np.concatenate([unit(0, 250, clusters=8), unit(1, 170, clusters=8)[20:]])


def test_an_exemplar_finds_itself(index):
    everything = labelled(250) + labelled(150, prefix="f")
    found = index.search("protein", proteins(), 1)
    assert found.similarities.dtype == np.float32
    assert found.positions.dtype == np.int64
    assert found.similarities == pytest.approx(1.0, abs=1e-5)
    assert [index.exemplar("protein", at) for at in found.positions[:, 0]] == everything
    assert found.accepted[:, 0].tolist() == [exemplar.accepted for exemplar in everything]


def test_indexes_have_the_requested_kind_and_small_types_are_flat(tmp_path, index, kind):
    assert isinstance(faiss.read_index(str(tmp_path / "index" / "protein.faiss")), CLASSES[kind])
    assert isinstance(faiss.read_index(str(tmp_path / "index" / "disease.faiss")), faiss.IndexFlatIP)


def test_fewer_than_k_are_padded(index):
    for type_, have in (("disease", 20), ("symptom", 0)):
        found = index.search(type_, unit(5, 3), 30)
        assert found.similarities.shape == found.accepted.shape == found.positions.shape == (3, 30)
        assert np.isneginf(found.similarities[:, have:]).all()
        assert not found.accepted[:, have:].any()
        assert (found.positions[:, have:] == -1).all()
        assert [sorted(row) for row in found.positions[:, :have].tolist()] == [list(range(have))] * 3
        assert (np.diff(found.similarities[:, :have]) <= 0).all()
    assert index.search("protein", np.empty((0, DIM)), 4).positions.shape == (0, 4)


def test_the_index_reports_its_contents(index, kind):
    assert len(index) == 420
    assert index.counts() == {"protein": (266, 134), "disease": (13, 7)}
    assert list(index.ids()) == [exemplar.id for exemplar in index.items()]
    assert {exemplar.id: exemplar for exemplar in index.items()} == {
        exemplar.id: exemplar for exemplar in labelled(250) + labelled(20, "disease", "d") + labelled(150, prefix="f")
    }
    manifest = index.manifest
    assert (manifest.version, manifest.kind, manifest.dim, manifest.encoder) == (1, kind, DIM, ENCODER)
    assert {type_: (has.count, has.accepted) for type_, has in manifest.types.items()} == {
        "protein": (400, 266),
        "disease": (20, 13),
    }
    assert set(manifest.files) == {"protein.faiss", "protein.jsonl", "disease.faiss", "disease.jsonl"}


def test_changes_are_searched_and_saved(tmp_path, index, kind):
    new = unit(7, 3)
    index.add(
        new,
        [
            Exemplar(id="new", type="protein", accepted=True),
            Exemplar(id="e0", type="protein", accepted=True, source="feedback", reviewer="r"),  # was rejected
            Exemplar(id="d0", type="symptom", accepted=False),  # was a disease
        ],
    )
    assert index.remove(["e1", "f3", "e1", "never there"]) == 2
    assert index.remove(["e1"]) == 0
    index.save(tmp_path / "saved")
    for each in (index, load(tmp_path / "saved", check=True)):
        assert len(each) == 419
        assert each.counts() == {"protein": (267, 132), "disease": (13, 6), "symptom": (0, 1)}
        assert found_ids(each, "protein", new[:2], 1) == [["new"], ["e0"]]
        assert found_ids(each, "symptom", new[2:], 5) == [["d0"]]
        assert not {"e1", "f3"} & set(each.ids())
        assert not {"e1", "f3", "e0"} & set(found_ids(each, "protein", proteins()[[0, 1, 253]], 1)[0])
        assert each.manifest.kind == kind
    assert isinstance(faiss.read_index(str(tmp_path / "saved" / "protein.faiss")), CLASSES[kind])


def test_a_found_position_stays_readable_after_removal(index):
    new = unit(7, 2)
    index.add(new, [Exemplar(id=id_, type="protein", accepted=True) for id_ in ("one", "two")])
    base, added = (int(index.search("protein", one, 1).positions[0, 0]) for one in (proteins()[9:10], new[1:]))
    index.remove(["e9", "one", "two"])
    index.add(new[:1], [Exemplar(id="three", type="protein", accepted=True)])
    assert [index.exemplar("protein", at).id for at in (base, added)] == ["e9", "two"]


def test_removed_neighbours_make_room_for_the_next(index, kind):
    query = proteins()[:1]
    order = np.argsort(-(proteins() @ query[0]))
    ids = [exemplar.id for exemplar in index.items() if exemplar.type == "protein"]
    assert index.remove([ids[at] for at in order[:40]]) == 40
    found, exact = found_ids(index, "protein", query, 10)[0], [ids[at] for at in order[40:50]]
    assert len(found) == 10
    assert found == exact if kind == "flat" else len({*found} & {*exact}) >= 8


def test_everything_can_be_removed(tmp_path, index):
    assert index.remove([*index.ids()]) == 420
    assert (len(index), index.counts(), [*index.items()]) == (0, {}, [])
    assert (index.search("protein", unit(0, 1), 5).positions == -1).all()
    assert index.save(tmp_path / "empty").types == {}
    empty = load(tmp_path / "empty", check=True)
    empty.add(unit(3, 1), labelled(1))
    assert found_ids(empty, "protein", unit(3, 1), 5) == [["e0"]]


def test_a_save_into_its_own_folder(tmp_path, index):
    index.remove(["e1"])
    index.save(tmp_path / "index")
    assert index.exemplar("protein", 2).id == "e2"  # from the files that are gone
    assert len(load(tmp_path / "index", check=True)) == len(index) == 419
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


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


changes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.sampled_from("ab")))),
        st.tuples(st.just("remove"), st.sets(st.integers(0, 30))),
        st.tuples(st.just("save"), st.none()),
    ),
    max_size=8,
)


@given(st.integers(0, 25), changes, st.integers(1, 12))
def test_flat_search_is_exact_after_any_changes(tmp_path_factory, size, steps, k):
    folder = tmp_path_factory.mktemp("exemplars") / "index"
    pool = iter(unit(0, 2000, 8))
    expected = {}  # what should be there, by id: the exemplar and its vector

    def batch(parts):
        made = [Exemplar(id=str(id_), type=type_, accepted=accepted) for id_, accepted, type_ in parts]
        vectors = np.array([next(pool) for _ in made], np.float32).reshape(-1, 8)
        expected.update({exemplar.id: (exemplar, vector) for exemplar, vector in zip(made, vectors, strict=True)})
        return vectors, made

    build(folder, batch([(id_, id_ % 2 > 0, "ab"[id_ % 3 > 0]) for id_ in range(size)]), dim=8)
    index = load(folder)
    for what, given_ in [*steps, ("save", None)]:
        if what == "add":
            index.add(*batch(given_))
        elif what == "remove":
            there = {str(id_) for id_ in given_} & set(expected)
            assert index.remove(str(id_) for id_ in given_) == len(there)
            for id_ in there:
                del expected[id_]
        else:
            check(index, expected, k)
            index.save(folder)
            index = load(folder, check=True)
        check(index, expected, k)


def check(index, expected, k):
    assert {exemplar.id: exemplar for exemplar in index.items()} == {id_: given for id_, (given, _) in expected.items()}
    queries = unit(1, 4, 8)
    for type_ in "ab":
        of_type = {id_: vector for id_, (exemplar, vector) in expected.items() if exemplar.type == type_}
        most = min(k, len(of_type))
        exact = np.sort(queries @ np.array([*of_type.values()], np.float32).reshape(-1, 8).T, axis=1)[:, ::-1][:, :k]
        found = index.search(type_, queries, k)
        assert found.similarities[:, :most] == pytest.approx(exact, abs=1e-5)
        assert (found.positions[:, most:] == -1).all()
        for row, query in enumerate(queries):
            near = [index.exemplar(type_, at) for at in found.positions[row, :most]]
            assert len({exemplar.id for exemplar in near}) == most
            assert [of_type[exemplar.id] @ query for exemplar in near] == pytest.approx(exact[row], abs=1e-5)
            assert [exemplar.accepted for exemplar in near] == found.accepted[row, :most].tolist()


def test_batches_are_read_one_at_a_time(tmp_path):
    progress = []

    def batches():
        for n in range(5):
            assert progress == [10 * (m + 1) for m in range(n)]  # the one before is done with
            yield unit(n, 10), labelled(10, prefix=f"{n}-")

    build_from = {"kind": "flat", "encoder": ENCODER, "dim": DIM, "progress": progress.append}
    ExemplarIndex.build(tmp_path / "index", batches(), **build_from)
    assert progress[-1] == 50 == len(load(tmp_path / "index"))


def test_blocks(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "_BLOCK", 64)
    monkeypatch.setattr(module, "_LINES_BLOCK", 1000)
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


def test_the_old_index_stays_until_the_new_one_is_complete(tmp_path):
    folder = tmp_path / "index"
    build(folder, (unit(0, 5), labelled(5)))
    old = load(folder)

    def batches():
        yield unit(1, 3), labelled(3, prefix="new")
        assert len(load(folder, check=True)) == 5
        yield unit(2, 1), labelled(1, prefix="newer")

    ExemplarIndex.build(folder, batches(), kind="flat", encoder=ENCODER, dim=DIM)
    assert len(load(folder, check=True)) == 4
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
    assert len(load(folder, check=True)) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_replacing_a_folder_without_renameat2(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    for n in (5, 3):
        build(tmp_path / "index", (unit(0, n), labelled(n)))
        assert len(load(tmp_path / "index", check=True)) == n
        assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExemplarError, match=rf"no index: {MANIFEST}.*name another folder"):
        build(tmp_path, (unit(0, 5), labelled(5)))
    (tmp_path / MANIFEST).write_text('{"steps": 100}')  # as a folder of training has it
    with pytest.raises(ExemplarError, match=rf"{MANIFEST}: .*name another folder"):
        build(tmp_path, (unit(0, 5), labelled(5)))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


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


@pytest.mark.parametrize("type_", ["../up", "Protein", "a b", "", "x\n"])
def test_a_type_can_name_a_file(type_):
    with pytest.raises(ValidationError):
        Exemplar(id="e", type=type_, accepted=True)


def test_an_index_of_another_encoder_is_refused(tmp_path):
    build(tmp_path / "index", (unit(0, 5), labelled(5)))
    with pytest.raises(ExemplarError, match=f"encoder: made with {ENCODER}, not with fe.*`biobracket index build`"):
        ExemplarIndex.load(tmp_path / "index", encoder="fe" * 8)
    assert len(ExemplarIndex.load(tmp_path / "index", encoder=None)) == 5


@pytest.mark.parametrize("manifest", [None, "not json", "{}", '{"version": 2}', "[]"])
def test_an_invalid_index_is_refused(tmp_path, manifest):
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(ExemplarError, match=f"{MANIFEST}.*; build it again with `biobracket index build`"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["protein.faiss", "protein.jsonl"])
def test_damage_is_found(tmp_path, kind, name):
    build(tmp_path, (unit(0, 200), labelled(200)), kind=kind)
    file = tmp_path / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    refusal = f"{name}: not the file that {MANIFEST} describes; .*index build"
    load(tmp_path)  # which does not read all
    with pytest.raises(ExemplarError, match=refusal):
        load(tmp_path, check=True)
    for other in (whole + b" ", whole[: len(whole) // 2], whole[:30], b""):
        file.write_bytes(other)
        with pytest.raises(ExemplarError, match=refusal):
            load(tmp_path)
    file.unlink()
    with pytest.raises(ExemplarError, match=f"{name}: missing; .*index build"):
        load(tmp_path)


@pytest.mark.parametrize(("name", "damage"), [("faiss", b"none"), ("jsonl", b"\n\n\n\n"), ("jsonl", b"    ")])
def test_corrupt_files_of_the_right_size_are_refused(tmp_path, name, damage):
    build(tmp_path, (unit(0, 200), labelled(200)))
    file = tmp_path / f"protein.{name}"
    whole = file.read_bytes()
    file.write_bytes(damage + whole[4:] if name == "faiss" else whole[:-4] + damage)
    with pytest.raises(ExemplarError, match=r"protein\.faiss (or|and) protein\.jsonl (cannot be read|do not match)"):
        load(tmp_path)


def test_an_index_replaced_while_loading_is_refused(tmp_path, monkeypatch):
    build(tmp_path / "index", (unit(0, 5), labelled(5)))
    read = faiss.read_index

    def replace_first(*args):
        monkeypatch.setattr(faiss, "read_index", read)
        build(tmp_path / "index", (unit(1, 5), labelled(5, prefix="new")))
        return read(*args)

    monkeypatch.setattr(faiss, "read_index", replace_first)
    with pytest.raises(ExemplarError, match="replaced while it was read; load it again"):
        load(tmp_path / "index")
    assert [*load(tmp_path / "index").ids()] == [f"new{i}" for i in range(5)]


def test_text_is_not_in_messages(tmp_path):
    build(tmp_path / "index", (unit(0, 1), [Exemplar(id="e", type="protein", accepted=True, text=SECRET)]))
    lines = tmp_path / "index" / "protein.jsonl"
    for damage in ('"source": 7', '"source" 77', '"more":"  "'):
        text = lines.read_text(encoding="utf-8")
        lines.write_text(text.replace('"source":""', damage), encoding="utf-8")
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


def test_an_unknown_position_is_refused(index):
    for type_, position in (("protein", 400), ("protein", -1), ("symptom", 0)):
        with pytest.raises(ExemplarError, match=f"{type_}: no exemplar at position {position}"):
            index.exemplar(type_, position)


def test_ids_with_equal_hashes_are_distinguished(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "hash", lambda _: 7, raising=False)
    build(tmp_path / "index", (unit(0, 9), labelled(9)))
    index = load(tmp_path / "index")
    assert index.remove(["e3", "e5", "no"]) == 2
    assert [*index.ids()] == ["e0", "e1", "e2", "e4", "e6", "e7", "e8"]


def test_a_search_never_sees_a_partial_change(tmp_path):
    build(tmp_path / "index", (unit(0, 300), labelled(300)))
    index = load(tmp_path / "index")
    near = unit(1, 1)
    five = np.repeat(near, 5, axis=0)
    done = threading.Event()
    seen = set()

    def read():
        while not done.is_set():
            seen.add(tuple(index.search("protein", near, 5).accepted[0].tolist()))

    def label(accepted):
        index.add(five, [Exemplar(id=f"near{i}", type="protein", accepted=accepted) for i in range(5)])

    label(True)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(150):
        label(n % 2 > 0)
    done.set()
    for reader in readers:
        reader.join()
    assert seen <= {(True,) * 5, (False,) * 5}
    assert len(index) == 305


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
    monkeypatch.setattr(module, "_GPU_MOST", 20)
    for name in KINDS:
        build(tmp_path / name, (unit(0, 200), labelled(200)), kind=name)
        index = load(tmp_path / name)
        assert found_ids(index, "protein", unit(0, 200)[:9], 1) == [[f"e{i}"] for i in range(9)]
        assert index.search("protein", unit(0, 1), 21).positions.shape == (1, 21)  # more than it can give
    assert asked == [1, 1]  # flat and IVF; a graph stays off it


def test_the_manifest_is_indented_json(tmp_path):
    build(tmp_path / "index", (unit(0, 3), labelled(3)), kind="hnsw")
    manifest = json.loads((tmp_path / "index" / MANIFEST).read_text())
    assert manifest["types"] == {"protein": {"count": 3, "accepted": 2}}
    assert all(len(file["sha256"]) == 64 for file in manifest["files"].values())
