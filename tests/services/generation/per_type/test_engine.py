"""The copy engine against plain decoding, token by token, with the whole model and no packing."""

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
from services.generation.copy import CopyEngine
from services.generation.engine import TagRequest
from shared import entity_types
from shared.messages import Segment
from shared.model.attention import use_packed_attention
from shared.model.body import Packed
from shared.text.grammar import Action, CopyTokens, State, tagged_text
from shared.text.pieces import split
from tests.support.tiny import make_tiny_model

TYPES = ("protein", "disease", "cell_line")


@pytest.fixture(scope="module", params=[(0, 512), (1, 512), (2, 512), (3, 24)], ids=["0", "1", "2", "3-window"])
def folder(request, tmp_path_factory):
    seed, window = request.param
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=seed, window=window)


@pytest.fixture(scope="module")
def reference(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def made(folder, **changes):
    model = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    config = GenerationConfig(**{"candidate_floor": 0.3, "branch_pieces": 4} | changes)
    return CopyEngine(Packed(model), CopyTokens(AutoTokenizer.from_pretrained(folder)), config)


@pytest.fixture(scope="module", params=[4, 256], ids="lookahead-{}".format)
def engine(folder, request):
    return made(folder, lookahead=request.param)


def segment(text: str, lang: str = "en", index: int = 0) -> Segment:
    return Segment(document_id="d", index=index, start=0, end=len(text), text=text, lang=lang)


@torch.inference_mode()
def plain(reference, text: str, name: str) -> tuple[list[Action], list[float]]:
    """Greedy decoding under the constraint: a forward pass of the whole sequence for every action."""
    model, tokenizer = reference
    tokens = CopyTokens(tokenizer)
    pieces = split(text)
    ids = [*tokens.prefix(pieces), *tokens.header(name)]
    state, actions, chosen, after_open = State(len(pieces)), [], [], False
    while options := state.admissible():
        first = [tokens.action(pieces, state.copied, o, after_open=after_open) for o in options]
        logits = model(torch.tensor([ids])).logits[0, -1, [f[0] for f in first]]
        best = int(logits.argmax())
        chosen.append(float(torch.log_softmax(logits, -1)[best]))
        actions.append(options[best])
        ids += first[best]
        state.apply(options[best])
        after_open = options[best] is Action.OPEN
    return actions, chosen


TEXTS = [
    "Activation of the CD28 surface receptor.",
    "IL-2 gene expression and NF-kappa B activation [1] in Jurkat T cells",
    "a",
    "  two  spaces\tand a tab\nand \\ lines ] [ ",
    "右肺下叶腺癌 with EGFR 突变",
]


@pytest.mark.parametrize("text", TEXTS)
def test_equals_plain_greedy_decoding(engine, reference, text):
    lines = engine.tag([TagRequest(segment(text), TYPES)])[0]
    assert [line.type for line in lines] == list(TYPES)
    for line in lines:
        actions, logprobs = plain(reference, text, entity_types.get(line.type).name("en"))
        if actions == [Action.ABSENT]:
            assert line.tagged == ""
            assert line.presence == pytest.approx(1 - math.exp(logprobs[0]), abs=1e-4)
            continue
        assert line.tagged == tagged_text(split(text), actions)
        expected = [p for a, p in zip(actions, logprobs, strict=True) if a in (Action.OPEN, Action.CLOSE)]
        if actions[0] is Action.OPEN:  # the engine gives the first action's probability on condition of presence
            expected[0] -= math.log(line.presence)
        assert list(line.brackets) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab C1-[]\\ 中文😀\n"), min_size=1, max_size=24), types=st.permutations(TYPES))
def test_equals_plain_greedy_decoding_on_any_text(engine, reference, text, types):
    for line in engine.tag([TagRequest(segment(text), tuple(types))])[0]:
        actions, _ = plain(reference, text, entity_types.get(line.type).name("en"))
        assert line.tagged == ("" if actions == [Action.ABSENT] else tagged_text(split(text), actions))


@pytest.mark.parametrize(("threads", "tokens"), [(1, 1), (1, 200), (3, 200), (3, 4000)])
def test_lines_do_not_depend_on_what_is_under_way_beside_them(folder, engine, threads, tokens):
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS * 3)]
    alone = [engine.tag([request])[0] for request in requests]
    together = made(folder, threads=threads, pass_tokens=tokens, cache_tokens=tokens).tag(requests)
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.tagged, a.type, a.segment) == (b.tagged, b.type, b.segment)
            assert a.brackets == pytest.approx(b.brackets, abs=1e-4)
            assert [(x.start, x.end) for x in a.alternatives] == [(x.start, x.end) for x in b.alternatives]


@pytest.mark.parametrize("floor", [0.001, 0.02])
def test_candidates_do_not_depend_on_how_many_tokens_are_looked_at_together(folder, floor):
    """Whoever looks at few tokens stops where no closing further on can count; of many all are looked at."""
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS)]
    few, many = (
        made(folder, candidate_floor=floor, branch_pieces=8, lookahead=lookahead).tag(requests)
        for lookahead in (1, 256)
    )
    found = [
        [{(a.start, a.end): a.logprob for of in lines for a in of.alternatives} for lines in tagged]
        for tagged in (few, many)
    ]
    assert any(found[0])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_tagged_text_is_the_segment(engine):
    for request, lines in zip(
        requests := [TagRequest(segment(t), TYPES) for t in TEXTS], engine.tag(requests), strict=True
    ):
        for line in lines:
            if line.tagged:
                assert _without_brackets(line.tagged) == request.segment.text
            for alternative in line.alternatives:
                assert 0 <= alternative.start < alternative.end <= len(request.segment.text)


def test_no_requests(engine):
    assert engine.tag([]) == []


def tagged(found):
    return [[line.tagged for line in lines] for lines in found]


def test_a_segment_that_fails_fails_alone(engine):
    good = TagRequest(segment(TEXTS[0]), TYPES)
    expected = tagged(engine.tag([good]))
    futures = [engine.submit(request) for request in (good, TagRequest(segment(TEXTS[1]), ("no such type",)), good)]
    assert tagged([futures[0].result(), futures[2].result()]) == [*expected, *expected]
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
    made = CopyEngine(Failing(engine._body), engine._tokens, engine._config.model_copy(update={"threads": 1}))
    return made, made._body


def test_those_under_way_learn_that_a_pass_failed_and_those_after_them_do_not_suffer(engine, failing):
    request = TagRequest(segment(TEXTS[0]), TYPES)
    other, body = failing
    body.error = RuntimeError("out of memory")
    for future in [other.submit(request) for _ in range(3)]:
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result()
    body.error = None
    assert tagged(other.tag([request])) == tagged(engine.tag([request]))


def test_who_has_gone_before_its_turn_costs_nothing(engine, failing):
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
    assert tagged([with_it.result(), last.result()]) == tagged(engine.tag([request, request]))


def test_what_a_segment_took_of_the_cache_is_given_back(engine):
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS * 3)]
    caches = []
    other = CopyEngine(engine._body, engine._tokens, engine._config.model_copy(update={"threads": 1}))
    segments = other._segment

    def seen(request, cache):
        found = yield from segments(request, cache)
        caches.append((cache, cache.used))
        return found

    other._segment = seen
    other.tag(requests)
    assert caches[-1][1] == 0


def _without_brackets(tagged: str) -> str:
    out, escaped = [], False
    for character in tagged:
        if escaped:
            out.append(character)
            escaped = False
        elif character == "\\":
            escaped = True
        elif character not in "[]":
            out.append(character)
    return "".join(out)
