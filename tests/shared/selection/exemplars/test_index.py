import threading

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ExemplarError
from shared.selection.exemplars.format import MANIFEST, Exemplar
from shared.selection.exemplars.index import ExemplarIndex
from tests.support.exemplars import CLASSES, DIM, ENCODER, build, found_ids, labelled, load, proteins, unit


def test_an_exemplar_finds_itself(index):
    everything = labelled(250) + labelled(150, prefix="f")
    found = index.search("protein", proteins(), 1)
    assert found.similarities.dtype == np.float32
    assert found.positions.dtype == np.int64
    assert found.similarities == pytest.approx(1.0, abs=1e-5)
    assert [index.exemplar("protein", at) for at in found.positions[:, 0]] == everything
    assert found.accepted[:, 0].tolist() == [exemplar.accepted for exemplar in everything]


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
    for each in (index, load(tmp_path / "saved")):
        assert len(each) == 419
        assert each.counts() == {"protein": (267, 132), "disease": (13, 6), "symptom": (0, 1)}
        assert found_ids(each, "protein", new[:2], 1) == [["new"], ["e0"]]
        assert found_ids(each, "symptom", new[2:], 5) == [["d0"]]
        assert not {"e1", "f3"} & set(each.ids())
        assert not {"e1", "f3", "e0"} & set(found_ids(each, "protein", proteins()[[0, 1, 253]], 1)[0])
        assert each.manifest.kind == kind
    assert isinstance(faiss.read_index(str(tmp_path / "saved" / "protein.faiss")), CLASSES[kind])


def test_everything_can_be_removed(tmp_path, index):
    assert index.remove([*index.ids()]) == 420
    assert (len(index), index.counts(), [*index.items()]) == (0, {}, [])
    assert (index.search("protein", unit(0, 1), 5).positions == -1).all()
    assert index.save(tmp_path / "empty").types == {}
    empty = load(tmp_path / "empty")
    empty.add(unit(3, 1), labelled(1))
    assert found_ids(empty, "protein", unit(3, 1), 5) == [["e0"]]


def test_a_save_into_its_own_folder(tmp_path, index):
    index.remove(["e1"])
    index.save(tmp_path / "index")
    assert index.exemplar("protein", 2).id == "e2"  # from the files that are gone
    assert len(load(tmp_path / "index")) == len(index) == 419
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


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
            index = load(folder)
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


def test_an_index_of_another_encoder_is_refused(tmp_path):
    build(tmp_path / "index", (unit(0, 5), labelled(5)))
    with pytest.raises(ExemplarError, match=f"encoder: made with {ENCODER}, not with fe.*`biobracket index build`"):
        ExemplarIndex.load(tmp_path / "index", encoder="fe" * 8)
    assert len(ExemplarIndex.load(tmp_path / "index", encoder=None)) == 5


@pytest.mark.parametrize("name", ["protein.faiss", "protein.jsonl"])
def test_damage_is_found(tmp_path, kind, name):
    build(tmp_path, (unit(0, 200), labelled(200)), kind=kind)
    file = tmp_path / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    refusal = f"{name}: not the file that {MANIFEST} describes; .*index build"
    with pytest.raises(ExemplarError, match=refusal):
        load(tmp_path)
    for other in (whole + b" ", whole[: len(whole) // 2], whole[:30], b""):
        file.write_bytes(other)
        with pytest.raises(ExemplarError, match=refusal):
            load(tmp_path)
    file.unlink()
    with pytest.raises(ExemplarError, match=f"{name}: missing; .*index build"):
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


def test_an_unknown_position_is_refused(index):
    for type_, position in (("protein", 400), ("protein", -1), ("symptom", 0)):
        with pytest.raises(ExemplarError, match=f"{type_}: no exemplar at position {position}"):
            index.exemplar(type_, position)


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
