import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.selection.config import SelectionConfig
from services.selection.exemplar_pool import ExemplarPool
from services.selection.overlaps import NESTING_BAR
from services.selection.selector import Selector, vote
from shared.messages import Candidate, Evidence, Segment, check_offsets
from shared.selection.calibration import Calibration, Judgement, Scaling, TypeCalibration
from shared.selection.exemplars.format import Exemplar
from shared.selection.exemplars.index import ExemplarIndex
from shared.selection.exemplars.snapshot import Neighbours
from shared.selection.span_encoder import Encoded

TEXT = "abcdefghijklmnopqrst"
SEGMENT = Segment(document_id="d", index=0, start=0, end=len(TEXT), text=TEXT, lang="en")
# Confidences are the probabilities, greedy or not, so that the numbers below can be read.
PLAIN = Calibration(
    types={t: TypeCalibration(beyond=Scaling(), threshold=0.3) for t in ("protein", "dna")},
    unfitted=TypeCalibration(beyond=Scaling()),
)


def candidate(start, end, confidence, *, greedy=True, type_="protein"):
    return Candidate(
        segment=SEGMENT,
        type=type_,
        start=start,
        end=end,
        text=TEXT[start:end],
        generator_confidence=confidence,
        greedy=greedy,
    )


def select(*candidates, calibration=PLAIN):
    return [(e.start, e.end) for e in entities_of(Selector(calibration), candidates)]


def entities_of(selector, candidates):
    (selected,) = selector.select([candidates])
    return selected.entities


def test_spans_of_other_documents_are_no_rivals():
    calibration = Calibration(unfitted=TypeCalibration(greedy=Scaling(slope=0.0, margin=1.0)))
    low, high = candidate(0, 5, 0.4), candidate(2, 6, 0.6)
    selector = Selector(calibration)
    together = selector.select([[low, high]])[0]
    apart = selector.select([[low], [high]])
    assert [e.start for e in together.entities] == [2]
    assert [[e.start for e in selected.entities] for selected in apart] == [[0], [2]]


def test_the_entity_carries_both_confidences():
    calibration = Calibration(types={"protein": TypeCalibration(greedy=Scaling(slope=0.5))})
    (entity,) = entities_of(Selector(calibration), [candidate(2, 5, 0.9)])
    assert entity.model_dump() == {
        "v": 1,
        "id": "protein:2-5",
        "start": 2,
        "end": 5,
        "text": "cde",
        "type": "protein",
        "confidence": pytest.approx(0.75),
        "generator_confidence": 0.9,
        "evidence": (),
        "parent_id": None,
    }


def test_the_threshold_is_the_types_own():
    assert select(candidate(0, 2, 0.31), candidate(4, 6, 0.29)) == [(0, 2)]
    assert select(candidate(0, 2, 0.31, type_="disease"), candidate(4, 6, 0.51, type_="disease")) == [(4, 6)]


def test_spans_beyond_greedy_use_their_own_scaling():
    both = [candidate(0, 2, 0.7), candidate(4, 6, 0.7, greedy=False)]
    assert select(*both, calibration=Calibration.default()) == [(0, 2)]


@pytest.mark.parametrize("greedy", [True, False])
def test_of_crossing_spans_the_more_probable_stays(greedy):
    assert select(candidate(0, 5, 0.6), candidate(3, 8, 0.9, greedy=greedy)) == [(3, 8)]


def test_a_dropped_span_blocks_nothing():
    # The middle one loses to the first, so the last, which only crosses the middle one, stays.
    assert select(candidate(0, 5, 0.9), candidate(4, 9, 0.8), candidate(8, 12, 0.7)) == [(0, 5), (8, 12)]


def test_nested_spans_of_one_type_stay():
    assert select(candidate(0, 9, 0.6), candidate(0, 4, 0.5), candidate(5, 7, 0.4, greedy=False)) == [
        (0, 9),
        (0, 4),
        (5, 7),
    ]


def test_of_boundary_variants_the_more_probable_stays():
    assert select(candidate(0, 5, 0.7), candidate(0, 6, 0.6, greedy=False)) == [(0, 5)]
    assert select(candidate(0, 5, 0.6), candidate(0, 6, 0.7, greedy=False)) == [(0, 6)]
    assert select(candidate(1, 5, 0.6, greedy=False), candidate(0, 5, 0.7, greedy=False)) == [(0, 5)]


def test_boundary_variants_both_stay_where_nesting_is_likely():
    assert select(candidate(0, 5, 0.9), candidate(0, 9, NESTING_BAR, greedy=False)) == [(0, 9), (0, 5)]


def test_types_do_not_touch_one_another():
    assert select(candidate(0, 5, 0.6), candidate(3, 8, 0.9, type_="dna")) == [(0, 5), (3, 8)]


def test_one_span_comes_out_once():
    (entity,) = entities_of(
        Selector(PLAIN), [candidate(0, 5, 0.6), candidate(0, 5, 0.8, greedy=False), candidate(0, 5, 0.7)]
    )
    assert entity.confidence == pytest.approx(0.8)


def test_nothing_in_nothing_out():
    assert select() == []


@st.composite
def some_candidates(draw):
    spans = st.tuples(st.integers(0, len(TEXT)), st.integers(0, len(TEXT))).filter(lambda s: s[0] < s[1])
    confidence = st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.7, 0.85, 1.0])
    one = st.builds(
        lambda span, p, greedy, type_: candidate(*span, p, greedy=greedy, type_=type_),
        spans,
        confidence,
        st.booleans(),
        st.sampled_from(["protein", "dna", "disease"]),
    )
    return draw(st.lists(one, max_size=25))


@given(some_candidates(), st.randoms(use_true_random=False))
def test_what_is_kept_is_consistent(candidates, rng):
    selector = Selector(PLAIN)
    everything = [candidates, [], rng.sample(candidates, len(candidates))]
    entities, none, again = (selected.entities for selected in selector.select(everything))
    assert none == ()
    assert again == entities
    assert len({e.id for e in entities}) == len(entities)
    assert [(e.start, -e.end, e.type) for e in entities] == sorted((e.start, -e.end, e.type) for e in entities)
    for entity in entities:
        assert check_offsets(TEXT, entity)
        assert entity.confidence >= PLAIN.threshold(entity.type)
    for a, b in combinations(entities, 2):
        if a.type == b.type:
            assert not a.start < b.start < a.end < b.end
            assert not b.start < a.start < b.end < a.end
    for c in candidates:
        # The best of all is never lost.
        if PLAIN.probability(c.type, Judgement(c.generator_confidence, c.greedy)) == pytest.approx(1.0, abs=1e-5):
            assert any(e.type == c.type and e.start < c.end and c.start < e.end for e in entities)


class Encoder:
    """Knows that what begins with an even letter is right."""

    def encode(self, candidates):
        even = [1.0 if c.start % 2 == 0 else -1.0 for c in candidates]
        return Encoded(np.zeros((len(candidates), 2)), np.array(even), np.ones(len(candidates), dtype=bool))

    def tokens(self, text):
        return len(text)


def test_the_head_has_its_say():
    heeded = Scaling(slope=1.0, head=3.0)
    calibration = Calibration(types={"protein": TypeCalibration(greedy=heeded, beyond=heeded)})
    asked = [candidate(2, 5, 0.4), candidate(7, 9, 0.6), candidate(10, 12, 0.6, greedy=False)]
    selector = Selector(calibration, Encoder())
    found = entities_of(selector, asked)
    assert [(e.start, e.end) for e in found] == [(2, 5), (10, 12)]
    assert found[0].generator_confidence == 0.4
    assert found[0].confidence == pytest.approx(1 / (1 + math.exp(-3.0) * 0.6 / 0.4))
    assert select(*asked, calibration=Calibration(unfitted=TypeCalibration(beyond=Scaling()))) == [(7, 9), (10, 12)]


def test_batches_are_by_the_segments_that_are_read():
    assert Selector(PLAIN, Encoder()).tokens([candidate(0, 1, 0.5), candidate(2, 3, 0.5)]) == len(TEXT)
    assert Selector(PLAIN).tokens([candidate(0, 1, 0.5)]) == 1


def near(similarities, accepted):
    """Neighbours of one candidate; a similarity of minus infinity is padding."""
    found = np.array([similarities], dtype=np.float32)
    return Neighbours(found, np.array([accepted]), np.where(np.isfinite(found), np.arange(found.shape[1]), -1))


def test_the_nearer_have_more_of_a_say():
    assert vote(near([0.9, 0.9], [True, False])).tolist() == [0.0]
    assert vote(near([0.9, 0.8], [True, False])).tolist() == [pytest.approx(math.tanh(0.5))]  # a reach of 0.1
    assert vote(near([0.9, 0.8, -np.inf], [False, True, False])).tolist() == [pytest.approx(-math.tanh(0.5))]
    assert vote(near([0.3, 0.2], [True, True])).tolist() == [1.0]
    assert vote(near([-np.inf], [False])).tolist() == [0.0]
    assert vote(near([], [])).tolist() == [0.0]


@given(st.lists(st.tuples(st.floats(-1, 1), st.booleans()), max_size=8))
def test_votes_are_between_all_rejected_and_all_accepted(neighbours):
    (said,) = vote(near([s for s, _ in neighbours], [a for _, a in neighbours])).tolist()
    assert -1 <= said <= 1
    (against,) = vote(near([s for s, _ in neighbours], [not a for _, a in neighbours])).tolist()
    assert said == pytest.approx(-against, abs=1e-6)


class Compass(Encoder):
    """Embeds what begins with an even letter in one direction, and the rest in another."""

    def encode(self, candidates):
        encoded = super().encode(candidates)
        encoded.embeddings[np.arange(len(candidates)), (encoded.logits < 0).astype(int)] = 1.0
        return encoded


def test_exemplars_vote_and_are_the_evidence(tmp_path):
    exemplars = [
        Exemplar(id="a", type="protein", accepted=True, text="CD28"),
        Exemplar(id="b", type="protein", accepted=False),
        Exemplar(id="c", type="dna", accepted=False, text="gene"),
    ]
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    ExemplarIndex.build(tmp_path / "index", [(vectors, exemplars)], kind="flat", encoder="0" * 16, dim=2)
    pool = ExemplarPool(2, "0" * 16, folder=tmp_path / "index")
    heeded = Scaling(slope=0.0, vote=2.0)
    calibration = Calibration(types={"protein": TypeCalibration(greedy=heeded)})
    selector = Selector(calibration, Compass(), pool, config=SelectionConfig(evidence=1))
    (entity,) = entities_of(selector, [candidate(2, 5, 0.5), candidate(7, 9, 0.9)])
    assert (entity.start, entity.end) == (2, 5)
    assert entity.confidence == pytest.approx(1 / (1 + math.exp(-2.0)), abs=1e-3)
    assert entity.evidence == (Evidence(text="CD28", type="protein", accepted=True, similarity=1.0),)
    known = selector.judge([candidate(2, 5, 0.5), candidate(7, 9, 0.9), candidate(2, 5, 0.5, type_="disease")])
    assert [k.vote for k in known] == [pytest.approx(1.0, abs=1e-3), pytest.approx(-1.0, abs=1e-3), 0.0]
    silent = Selector(calibration, Compass(), pool)
    assert entities_of(silent, [candidate(2, 5, 0.5)])[0].evidence == ()


class Overrides:
    """Says what it is told to of a candidate's text, and counts how often it is asked for news."""

    def __init__(self, **accepted):
        self._accepted = accepted
        self.version = 0

    def refresh(self):
        self.version += 1

    def accepted(self, candidate):
        return self._accepted.get(candidate.text)


def test_what_a_reviewer_said_stands_above_all(tmp_path):
    asked = [candidate(2, 5, 0.99), candidate(7, 9, 0.01, greedy=False), candidate(8, 11, 0.95), candidate(11, 13, 0.6)]
    for more in ((), (Compass(), ExemplarPool(2, "0" * 16, tmp_path))):
        selector = Selector(PLAIN, *more, overrides=Overrides(cde=False, hi=True))
        (selected,) = selector.select([asked])
        assert [(e.text, e.confidence) for e in selected.entities] == [("hi", 1.0), ("lm", pytest.approx(0.6))]
        assert selected.exemplars == ".1"
        assert selector.select([asked])[0].exemplars == ".2"
    assert Selector(PLAIN).select([asked])[0].exemplars == ""


def test_it_tells_what_it_decides_by_and_takes_a_new_index_for_it(tmp_path):
    config = SelectionConfig()
    plain = Selector(PLAIN, overrides=Overrides()).basis()
    assert plain.index == ""
    assert plain.settings != Selector(PLAIN, config=config.model_copy(update={"evidence": 3})).basis().settings
    pool = ExemplarPool(2, "0" * 16, tmp_path / "index")
    selector = Selector(PLAIN, Compass(), pool, config=config)
    assert selector.basis() == plain
    exemplar = Exemplar(accepted=True, id="a", type="protein", text="CD28", source="s")
    vectors = np.array([[1.0, 0.0]], dtype=np.float32)
    ExemplarIndex.build(tmp_path / "index", [(vectors, [exemplar])], kind="flat", encoder="0" * 16, dim=2)
    selector.basis()
    pool._loading.join()
    index = selector.basis().index
    assert index != ""
    assert selector.select([[candidate(2, 5, 0.9)]])[0].exemplars == f"{index}.0"
