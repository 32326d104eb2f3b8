import numpy as np

from shared.selection.exemplars.format import Exemplar
from tests.support.exemplars import DIM, found_ids, proteins, unit


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
