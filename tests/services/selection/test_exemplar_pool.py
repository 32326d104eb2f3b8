"""Exemplars that change while a selector runs: an index that is replaced, and what reviewers say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from services.selection.exemplar_pool import ExemplarPool
from shared.errors import ExemplarError
from shared.messages import Candidate, Segment
from shared.selection.exemplars.format import Exemplar
from shared.selection.exemplars.index import ExemplarIndex
from shared.selection.feedback import Changes, Feedback, NewFeedback
from shared.selection.span_encoder import Encoded

ENCODER = "0" * 16
DIM = 128
PATIENCE_S = 60.0


def candidate(text: str, mention: str, type_: str = "disease") -> Candidate:
    start = text.index(mention)
    return Candidate(
        segment=Segment(document_id="d", index=0, start=0, end=len(text), text=text, lang="en"),
        type=type_,
        start=start,
        end=start + len(mention),
        text=mention,
        generator_confidence=0.9,
    )


_WORDS: dict[str, int] = {}


def encode(candidates: Sequence[Candidate]) -> Encoded:
    """Directions by the words around a mention: the more of them two have in common, the nearer. Knows diseases."""
    vectors = np.zeros((len(candidates), DIM), dtype=np.float32)
    for row, each in enumerate(candidates):
        for word in each.segment.text.casefold().split():
            vectors[row, _WORDS.setdefault(word, len(_WORDS))] += 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = np.array([c.type == "disease" for c in candidates])
    return Encoded(vectors, np.zeros(len(candidates), dtype=np.float32), known)


def feedback(text: str, mention: str, *, accepted: bool, type_: str = "disease", at: float = 1.0) -> Feedback:
    start = text.index(mention)
    given = NewFeedback(text=text, start=start, end=start + len(mention), type=type_, accepted=accepted, time=at)
    return given.feedback(now=at)


ROOM = "the patient was kept in a cold room"


def test_feedback_has_a_vote_beside_the_index(tmp_path: Path) -> None:
    build(tmp_path / "index", {"x": ("the patient was kept in a cold ward", True)})
    pool = ExemplarPool(DIM, ENCODER, tmp_path / "index")
    given = feedback(ROOM, "cold", accepted=False)
    pool.update(Changes(1, (given,), ()), encode)
    found = pool.search("disease", encode([candidate(ROOM, "cold")]).embeddings, 3)
    assert found.neighbours.accepted.tolist() == [[False, True, False]]
    assert found.neighbours.positions.tolist()[0][2] == -1
    assert found.from_feedback.tolist()[0][:2] == [True, False]
    assert (found.exemplar(0, 0).source, found.exemplar(0, 0).id) == ("feedback", given.id)
    assert found.exemplar(0, 1).id == "x"
    pool.update(Changes(2, (), (given.id,)), encode)
    assert nearest(pool) == ["x"]


def test_later_feedback_takes_the_place_of_earlier_also_as_another_type() -> None:
    pool = ExemplarPool(DIM, ENCODER)
    first = feedback(ROOM, "cold", accepted=False)
    pool.update(Changes(1, (first,), ()), encode)
    second = feedback(ROOM, "cold", accepted=True, at=2.0)
    pool.update(Changes(2, (second,), ()), encode)
    found = pool.search("disease", encode([candidate(ROOM, "cold")]).embeddings, 2)
    assert (found.neighbours.accepted.tolist(), found.neighbours.positions[0, 1]) == ([[True, False]], -1)
    unknown = first.model_copy(update={"type": "organ"})
    pool.update(Changes(3, (unknown,), ()), encode)  # the encoder knows diseases only
    assert nearest(pool) == []


def test_a_store_that_began_anew_leaves_nothing_of_before() -> None:
    pool = ExemplarPool(DIM, ENCODER)
    pool.update(Changes(5, (feedback(ROOM, "cold", accepted=False),), ()), encode)
    pool.update(Changes(1, (), (), restarted=True), encode)
    assert nearest(pool) == []


def build(folder: Path, exemplars: dict[str, tuple[str, bool]], encoder: str = ENCODER) -> None:
    made = [Exemplar(id=id_, type="disease", accepted=accepted) for id_, (_, accepted) in exemplars.items()]
    vectors = encode([candidate(text, text.split()[0]) for text, _ in exemplars.values()]).embeddings
    ExemplarIndex.build(folder, [(vectors, made)], kind="flat", encoder=encoder, dim=DIM)


def nearest(pool: ExemplarPool) -> list[str]:
    pool.refresh()
    found = pool.search("disease", encode([candidate(ROOM, "cold")]).embeddings, 1)
    return [found.exemplar(0, 0).id] if found.neighbours.positions[0, 0] >= 0 else []


def until(pool: ExemplarPool, expected: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while nearest(pool) != expected:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_index_that_is_replaced_is_taken_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    pool = ExemplarPool(DIM, ENCODER, folder)
    assert (nearest(pool), pool.index_digest) == ([], "")
    build(folder, {"a": (ROOM, True)})
    until(pool, ["a"])
    first = pool.index_digest
    build(folder, {"b": (ROOM, True)})
    until(pool, ["b"])
    assert len({first, pool.index_digest, ""}) == 3
    for file in folder.iterdir():
        file.unlink()
    until(pool, [])
    assert pool.index_digest == ""


def test_an_index_that_cannot_be_used_does_not_take_the_place_of_one_that_can(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build(folder, {"a": (ROOM, True)})
    pool = ExemplarPool(DIM, ENCODER, folder)
    build(folder, {"b": (ROOM, True)}, encoder="1" * 16)
    pool.refresh()
    assert pool._loading is not None
    pool._loading.join(PATIENCE_S)
    assert nearest(pool) == ["a"]
    with pytest.raises(ExemplarError, match="encoder"):
        ExemplarPool(DIM, ENCODER, folder)
    build(folder, {"c": (ROOM, True)})
    until(pool, ["c"])
