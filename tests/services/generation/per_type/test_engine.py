"""The engine of a line a type against plain decoding, token by token, with the whole model and no packing."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.generation.config import GenerationConfig
from services.generation.engine import TagRequest
from services.generation.per_type.engine import PerTypeEngine
from shared import entity_types
from shared.messages import Segment
from shared.model.attention import use_packed_attention
from shared.model.body import Packed
from shared.text.per_type import Action, PerTypeTokens, State
from shared.text.pieces import split
from tests.support.failing import FailingBody
from tests.support.lines import mentions
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
    return PerTypeEngine(Packed(model), PerTypeTokens(AutoTokenizer.from_pretrained(folder)), config)


@pytest.fixture(scope="module", params=[4, 256], ids="lookahead-{}".format)
def engine(folder, request):
    return made(folder, lookahead=request.param)


def segment(text: str, lang: str = "en", index: int = 0) -> Segment:
    return Segment(document_id="d", index=index, start=0, end=len(text), text=text, lang=lang)


@torch.inference_mode()
def plain(reference, text: str, key: str) -> tuple[float, dict[tuple[int, int], float]]:
    """Greedy decoding of a type under the constraint: a forward pass of the whole sequence for every action.

    The probability that the type is there, and its mentions with theirs.
    """
    model, tokenizer = reference
    tokens = PerTypeTokens(tokenizer)
    pieces = split(text)
    ids = [*tokens.prefix(pieces), *tokens.header(entity_types.get(key).name("en"))]
    state, after_open, opened, found = State(len(pieces)), False, [], {}
    presence, first = 1.0, True
    while options := state.admissible():
        said = [tokens.action(pieces, state.copied, o, after_open=after_open) for o in options]
        logits = model(torch.tensor([ids])).logits[0, -1, [ids_[0] for ids_ in said]]
        chances = torch.softmax(logits.double(), -1).tolist()
        best = max(range(len(options)), key=chances.__getitem__)
        if first:
            presence = 1.0 - chances[options.index(Action.ABSENT)]
            chances[best] /= presence  # on condition that the type is there
            first = False
        if options[best] is Action.OPEN:
            opened.append(chances[best])
        elif options[best] is Action.CLOSE:
            span = pieces.cores[state.open[-1]], pieces.ends[state.copied - 1]
            found[span] = max(found.get(span, 0.0), presence * opened.pop() * chances[best])
        ids += said[best]
        state.apply(options[best])
        after_open = options[best] is Action.OPEN
    return presence, found


TEXTS = [
    "Activation of the CD28 surface receptor.",
    "IL-2 gene expression and NF-kappa B activation [1] in Jurkat T cells",
    "a",
    "  two  spaces\tand a tab\nand \\ lines ] [ ",
    "右肺下叶腺癌 with EGFR 突变",
]


@pytest.mark.parametrize("text", TEXTS)
def test_equals_plain_greedy_decoding(engine, reference, text):
    (line,) = engine.tag([TagRequest(segment(text), TYPES)])
    expected = {key: plain(reference, text, key) for key in TYPES}
    assert line.types == TYPES
    assert line.presence == pytest.approx(max(presence for presence, _ in expected.values()), abs=1e-4)
    found = mentions(line)
    for key, (_, spans) in expected.items():
        assert found[key] == pytest.approx(spans, abs=1e-4)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab C1-[]|\\ 中文😀\n"), min_size=1, max_size=24), types=st.permutations(TYPES))
def test_equals_plain_greedy_decoding_on_any_text(engine, reference, text, types):
    (line,) = engine.tag([TagRequest(segment(text), tuple(types))])
    assert line.types == tuple(types)
    assert mentions(line) == {key: pytest.approx(plain(reference, text, key)[1], abs=1e-4) for key in types}


@pytest.mark.parametrize(("threads", "tokens"), [(1, 1), (1, 200), (3, 200), (3, 4000)])
def test_lines_do_not_depend_on_what_is_under_way_beside_them(folder, engine, threads, tokens):
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS * 3)]
    alone = [engine.tag([request])[0] for request in requests]
    together = made(folder, threads=threads, pass_tokens=tokens, cache_tokens=tokens).tag(requests)
    for a, b in zip(alone, together, strict=True):
        assert (a.tagged, a.types, a.segment) == (b.tagged, b.types, b.segment)
        assert a.presence == pytest.approx(b.presence, abs=1e-4)
        assert a.brackets == pytest.approx(b.brackets, abs=1e-4)
        places = [[(x.start, x.end, x.type) for x in line.alternatives] for line in (a, b)]
        assert places[0] == places[1]


def test_a_type_does_not_depend_on_what_is_asked_beside_it(engine):
    for text in TEXTS:
        (together,) = engine.tag([TagRequest(segment(text), TYPES)])
        found = mentions(together)
        for key in TYPES:
            (alone,) = engine.tag([TagRequest(segment(text), (key,))])
            assert mentions(alone) == {key: pytest.approx(found[key], abs=1e-4)}
            others = {(x.start, x.end): x.logprob for x in together.alternatives if x.type == key}
            assert {(x.start, x.end): x.logprob for x in alone.alternatives} == pytest.approx(others, abs=1e-4)


def test_candidates_lie_in_the_segment_and_are_no_mentions(engine):
    requests = [TagRequest(segment(text), TYPES) for text in TEXTS]
    for line in engine.tag(requests):
        found = mentions(line)
        for other in line.alternatives:
            assert 0 <= other.start < other.end <= len(line.segment.text)
            assert (other.start, other.end) not in found[other.type]


def test_no_requests(engine):
    assert engine.tag([]) == []


def test_no_types(engine):
    (line,) = engine.tag([TagRequest(segment(TEXTS[0]), ())])
    assert (line.tagged, line.types, line.presence) == ("", (), 0.0)


def tagged(found):
    return [line.tagged for line in found]


def test_a_segment_that_fails_fails_alone(engine):
    good = TagRequest(segment(TEXTS[0]), TYPES)
    expected = tagged(engine.tag([good]))
    futures = [engine.submit(request) for request in (good, TagRequest(segment(TEXTS[1]), ("no such type",)), good)]
    assert tagged([futures[0].result(), futures[2].result()]) == [*expected, *expected]
    with pytest.raises(KeyError):
        futures[1].result()


@pytest.fixture
def failing(folder, engine):
    model = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    body = FailingBody(Packed(model))
    config = GenerationConfig(candidate_floor=0.3, branch_pieces=4, threads=1)
    return PerTypeEngine(body, PerTypeTokens(AutoTokenizer.from_pretrained(folder)), config), body


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


def test_what_a_segment_took_of_the_cache_is_given_back(folder, monkeypatch):
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS * 3)]
    used = []
    segments = PerTypeEngine._segment

    def seen(self, request, worker):
        found = yield from segments(self, request, worker)
        used.append(worker.cache.used)
        return found

    monkeypatch.setattr(PerTypeEngine, "_segment", seen)
    made(folder, threads=1).tag(requests)
    assert len(used) == len(requests)
    assert used[-1] == 0
