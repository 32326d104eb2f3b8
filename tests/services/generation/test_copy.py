"""The copy engine against plain decoding, token by token, with the whole model and no packing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.generation.config import GenerationConfig
from services.generation.copy import CopyEngine
from services.generation.engine import TagRequest
from shared import entity_types
from shared.copying import Action, CopyTokens, State, tagged_text
from shared.messages import Segment
from shared.packing import Packed, use_packed_attention
from shared.pieces import split
from tests.tiny import make_tiny_model

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
    config = GenerationConfig(candidate_floor=0.3, branch_pieces=4, **changes)
    return CopyEngine(Packed(model), CopyTokens(AutoTokenizer.from_pretrained(folder)), config)


@pytest.fixture(scope="module", params=[4, 256], ids="lookahead-{}".format)
def engine(folder, request):
    return made(folder, batch_tokens=2000, lookahead=request.param)


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


@pytest.mark.parametrize(("threads", "batch_tokens"), [(1, 500), (3, 500), (3, 4000)])
def test_lines_do_not_depend_on_the_batch_nor_on_what_runs_beside_it(folder, engine, threads, batch_tokens):
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS * 3)]
    alone = [engine.tag([request])[0] for request in requests]
    together = made(folder, threads=threads, batch_tokens=batch_tokens).tag(requests)
    for one, other in zip(alone, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.tagged, a.type, a.segment) == (b.tagged, b.type, b.segment)
            assert a.brackets == pytest.approx(b.brackets, abs=1e-4)
            assert [(x.start, x.end) for x in a.alternatives] == [(x.start, x.end) for x in b.alternatives]


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
