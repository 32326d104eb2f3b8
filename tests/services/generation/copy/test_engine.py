"""The engine of labelled lines against plain decoding, token by token, with the whole model and no packing."""

from __future__ import annotations

import math
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.generation.config import GenerationConfig
from services.generation.copy.engine import CopyEngine
from services.generation.engine import TagRequest
from shared.messages import Segment
from shared.model.attention import use_packed_attention
from shared.model.body import Packed
from shared.text.grammar import (
    ABSENT,
    CLOSE,
    COPY,
    LABEL,
    OPEN,
    CopyTokens,
    Labels,
    PieceTokens,
    Script,
    tagged_text,
)
from shared.text.pieces import split
from tests.support.tiny import make_tiny_model

TYPES = ("protein", "disease", "cell_line", "cell_type")
TEXTS = [
    "Activation of the CD28 surface receptor.",
    "IL-2 gene expression and NF-kappa B activation [1] in Jurkat T cells",
    "a",
    "  two  spaces\tand a tab\nand \\ lines ] [ | ",
    "右肺下叶腺癌 with EGFR 突变",
]


@pytest.fixture(scope="module", params=[(0, 512), (1, 512), (2, 512), (3, 24)], ids=["0", "1", "2", "3-window"])
def folder(request, tmp_path_factory):
    seed, window = request.param
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=seed, window=window)


@pytest.fixture(scope="module")
def reference(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, CopyTokens(AutoTokenizer.from_pretrained(folder))


def made(folder, **changes):
    model = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    config = GenerationConfig(**{"candidate_floor": 0.3, "branch_pieces": 4} | changes)
    return CopyEngine(Packed(model), CopyTokens(AutoTokenizer.from_pretrained(folder)), config)


@pytest.fixture(scope="module", params=[4, 256], ids="lookahead-{}".format)
def engine(folder, request):
    return made(folder, lookahead=request.param)


def segment(text: str, lang: str = "en", index: int = 0) -> Segment:
    return Segment(document_id="d", index=index, start=0, end=len(text), text=text, lang=lang)


def script_of(tokens, text, types):
    return Script(tokens, PieceTokens(tokens, split(text)), Labels(tokens, types, "en"))


@torch.inference_mode()
def decided(reference, script, ids, state):
    """The log-probability of each admissible action, by a forward pass over the whole sequence."""
    actions, first = script.options(state)
    logits = reference[0](torch.tensor([ids])).logits[0, -1, list(first)]
    return dict(zip(actions, torch.log_softmax(logits, -1).tolist(), strict=True))


def greedy(reference, text, types, begin=()):
    """Actions and the log-probability of each, from ``begin`` on."""
    script = script_of(reference[1], text, types)
    ids, state, actions, chosen = list(script.prompt()), script.begin(), [], []
    while state.admissible():
        found = decided(reference, script, ids, state)
        action = begin[len(actions)] if len(actions) < len(begin) else max(found, key=found.__getitem__)
        actions.append(action)
        chosen.append(found[action])
        ids += script.ids(state, action)
        state.apply(action)
    return script, actions, chosen


@pytest.mark.parametrize("text", TEXTS)
def test_equals_plain_greedy_decoding(engine, reference, text):
    (line,) = engine.tag([TagRequest(segment(text), TYPES)])
    assert line.types == TYPES
    script, actions, logprobs = greedy(reference, text, TYPES)
    if actions == [ABSENT]:
        assert line.tagged == ""
        assert line.presence == pytest.approx(1 - math.exp(logprobs[0]), abs=1e-4)
        return
    assert line.tagged == (tagged_text(split(text), actions, script.labels) if OPEN in actions else "")
    expected = []
    for at, (action, logprob) in enumerate(zip(actions, logprobs, strict=True)):
        if action in (OPEN, CLOSE):
            # The engine gives the first action's probability on condition that there is a mention.
            expected.append(logprob - (math.log(line.presence) if at == 0 else 0.0))
        elif action >= LABEL:
            expected[-1] += logprob
    assert list(line.brackets) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab C1-[]|\\ 中文😀\n"), min_size=1, max_size=24), types=st.permutations(TYPES))
def test_equals_plain_greedy_decoding_on_any_text(engine, reference, text, types):
    (line,) = engine.tag([TagRequest(segment(text), tuple(types))])
    script, actions, _ = greedy(reference, text, tuple(types))
    assert line.tagged == (tagged_text(split(text), actions, script.labels) if OPEN in actions else "")


def test_what_was_drafted_before_changes_nothing(folder, reference):
    """Drafts are guessed from earlier lines; the lines are the same whatever was read before."""
    engine = made(folder)
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS)]
    first, second, third = (engine.tag(requests) for _ in range(3))
    assert [line.tagged for line in first] == [line.tagged for line in second] == [line.tagged for line in third]
    for one, other in zip(first, third, strict=True):
        assert one.brackets == pytest.approx(other.brackets, abs=1e-4)


@pytest.mark.parametrize(("threads", "tokens"), [(1, 1), (1, 200), (3, 200), (3, 4000)])
def test_lines_do_not_depend_on_what_is_running_beside_them(folder, engine, threads, tokens):
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS * 3)]
    alone = [engine.tag([request])[0] for request in requests]
    together = made(folder, threads=threads, pass_tokens=tokens, cache_tokens=tokens).tag(requests)
    for a, b in zip(alone, together, strict=True):
        assert (a.tagged, a.types, a.segment) == (b.tagged, b.types, b.segment)
        assert a.brackets == pytest.approx(b.brackets, abs=1e-4)
        assert [(x.start, x.end, x.type) for x in a.alternatives] == [(x.start, x.end, x.type) for x in b.alternatives]


@pytest.mark.parametrize("floor", [0.005, 0.05])
def test_candidates_do_not_depend_on_how_many_tokens_are_looked_at_together(folder, floor):
    """Who looks at few tokens stops where no later closing bracket can count; of many, all are looked at."""
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS)]
    few, many = (
        made(folder, candidate_floor=floor, branch_pieces=8, lookahead=lookahead).tag(requests)
        for lookahead in (1, 256)
    )
    found = [
        [{(a.start, a.end, a.type): a.logprob for a in line.alternatives} for line in lines] for lines in (few, many)
    ]
    assert any(found[0])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_candidate_is_as_probable_as_plain_decoding_says(folder, reference):
    """By passes over whole sequences, for one of the ways in which its brackets can leave the greedy line."""
    text, floor = TEXTS[1], 0.02
    (line,) = made(folder, candidate_floor=floor, branch_pieces=8).tag([TagRequest(segment(text), TYPES)])
    script, actions, _ = greedy(reference, text, TYPES)
    if actions == [ABSENT]:
        pytest.skip("this model finds nothing in the text")
    pieces = split(text)
    for found in line.alternatives:
        first, last = pieces.cores.index(found.start), pieces.ends.index(found.end) + 1
        label = script.labels.path(TYPES.index(found.type))
        ways = []
        state, opened = script.begin(), []
        for at, action in enumerate(actions):
            if state.node is None:
                if state.copied == first:
                    way = [*actions[:at], OPEN, *[COPY] * (last - first), CLOSE, *label]
                    # That another mention could begin at the same place makes this one no less probable.
                    ways.append((way, [at, *range(at + 2, len(way))]))
                if state.copied == last and state.open and state.open[-1] == first:
                    way = [*actions[:at], CLOSE, *label]
                    ways.append((way, [opened[-1], *range(at, len(way))]))
            if action == OPEN:
                opened.append(at)
            if state.apply(action) is not None:
                opened.pop()
        # The engine gives the first action's probability on condition that there is a mention.
        probable = [
            forced(reference, script, way, counted) - (math.log(line.presence) if 0 in counted else 0.0)
            for way, counted in ways
        ]
        assert any(found.logprob == pytest.approx(one, abs=1e-3) for one in probable)


def forced(reference, script, actions, counted):
    """The log-probability of some of a way's actions, given all before each."""
    ids, state, total = list(script.prompt()), script.begin(), 0.0
    for at, action in enumerate(actions):
        if action not in state.admissible():
            return -math.inf
        if at in counted:
            total += decided(reference, script, ids, state)[action]
        ids += script.ids(state, action)
        state.apply(action)
    return total


def test_one_type_needs_no_label_to_be_decided(engine, reference):
    for text in TEXTS:
        (line,) = engine.tag([TagRequest(segment(text), ("protein",))])
        script, actions, _ = greedy(reference, text, ("protein",))
        assert line.tagged == (tagged_text(split(text), actions, script.labels) if OPEN in actions else "")


def test_no_requests(engine):
    assert engine.tag([]) == []


def test_a_segment_that_fails_fails_alone(engine):
    good = TagRequest(segment(TEXTS[0]), TYPES)
    (expected,) = engine.tag([good])
    futures = [engine.submit(request) for request in (good, TagRequest(segment(TEXTS[1]), ("no such type",)), good)]
    assert futures[0].result().tagged == futures[2].result().tagged == expected.tagged
    with pytest.raises(KeyError):
        futures[1].result()


class Failing:
    """A model that fails when it is told to, or waits."""

    def __init__(self, body):
        self._body = body
        self.config, self.embedding, self.cache = body.config, body.embedding, body.cache
        self.error = None
        self.go = threading.Event()
        self.go.set()

    def __call__(self, *given):
        self.go.wait(30)
        if self.error is not None:
            raise self.error
        return self._body(*given)


@pytest.fixture
def failing(engine):
    config = engine._config.model_copy(update={"threads": 1})
    body = Failing(engine._forward._body)
    return CopyEngine(body, engine._tokens, config), body


def test_running_segments_learn_that_a_pass_failed_and_later_ones_do_not_suffer(engine, failing):
    request = TagRequest(segment(TEXTS[0]), TYPES)
    other, body = failing
    body.error = RuntimeError("out of memory")
    for future in [other.submit(request) for _ in range(3)]:
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result()
    body.error = None
    assert other.tag([request])[0].tagged == engine.tag([request])[0].tagged


def test_a_segment_cancelled_before_its_turn_costs_nothing(engine, failing):
    request, never = TagRequest(segment(TEXTS[0]), TYPES), TagRequest(segment(TEXTS[1]), TYPES)
    other, body = failing
    body.go.clear()
    with_it = other.submit(request)
    while not with_it.running():
        time.sleep(0.001)
    gone = other.submit(never)
    assert gone.cancel()
    last = other.submit(request)
    body.go.set()
    assert with_it.result().tagged == last.result().tagged == engine.tag([request])[0].tagged


def test_slots_are_given_back_but_for_headers(engine):
    other = CopyEngine(engine._forward._body, engine._tokens, engine._config.model_copy(update={"threads": 1}))
    seen = []
    segment_ = other._scheduler._task

    def watched(request, worker):
        found = yield from segment_(request, worker)
        seen.append((worker.cache.used, worker.headers))
        return found

    other._scheduler._task = watched
    other.tag([TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS * 3)])
    used, headers = seen[-1]
    assert len(headers) == 1
    assert used == sum(len(header) + -len(header) % 64 for header in headers)
