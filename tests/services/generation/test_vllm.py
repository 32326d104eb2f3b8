"""The vllm engine against the ``copy`` engine, on the same tiny weights."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import shared.model.int8_kernels  # noqa: F401  # loads LLVM: vLLM's processes do not start where they have it too
from services.generation import vllm
from services.generation.config import GenerationConfig
from services.generation.copy.engine import CopyEngine
from services.generation.engine import TagRequest
from services.parsing.brackets import parse
from shared.entity_types import TYPES as INVENTORY
from shared.messages import Segment
from shared.model.attention import use_packed_attention
from shared.model.body import Packed
from shared.text.grammar import CLOSE, COPY, LABEL, OPEN, CopyTokens, Labels, PieceTokens, Script
from shared.text.pieces import split
from tests.support.lines import mentions
from tests.support.tiny import make_tiny_model

pytest.importorskip("vllm", reason="vllm is not installed: `make vllm` installs it")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # vLLM and what it brings warn of many things

TYPES = ("protein", "disease", "cell_line")
TEXTS = (
    "Activation of the CD28 surface receptor.",
    "IL-2 gene expression and NF-kappa B activation [1] in Jurkat T cells",
    "a",
    "右肺下叶腺癌 with EGFR 突变",
)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    from services.generation.vllm import VllmEngine

    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=6, head=32)
    config = GenerationConfig(candidate_floor=0.01, branch_pieces=4, dtype="float32", pass_tokens=2000)
    model = use_packed_attention(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    served = VllmEngine(folder, config)
    yield CopyEngine(Packed(model), CopyTokens(AutoTokenizer.from_pretrained(folder)), config), served
    served.close()


def requests():
    segments = [Segment(document_id="d", index=i, start=0, end=len(t), text=t, lang="en") for i, t in enumerate(TEXTS)]
    return [TagRequest(segment, TYPES) for segment in segments]


def test_says_what_the_other_engine_says(both):
    drafted, served = (engine.tag(requests()) for engine in both)
    assert any(line.tagged for line in drafted)
    for a, b in zip(drafted, served, strict=True):
        assert (a.segment, a.types, a.tagged) == (b.segment, b.types, b.tagged)
        assert a.presence == pytest.approx(b.presence, abs=1e-3)
        assert a.brackets == pytest.approx(b.brackets, abs=1e-2)
        theirs = mentions(b)
        for key, found in mentions(a).items():
            assert found == pytest.approx(theirs[key], abs=1e-2)


def test_finds_the_candidates_beyond_greedy(both):
    """A mention that was not opened may be closed elsewhere: this engine closes it at the first good place."""
    drafted, served = (
        {(line.segment.index, x.type, x.start, x.end) for line in engine.tag(requests()) for x in line.alternatives}
        for engine in both
    )
    assert len(drafted & served) >= 0.7 * len(drafted | served) > 0


def test_no_requests(both):
    assert both[1].tag([]) == []


def script_of(served, request):
    pieces = PieceTokens(served._tokens, split(request.segment.text))
    return Script(served._tokens, pieces, Labels(served._tokens, request.types, request.segment.lang))


def test_each_label_has_its_log_probability_however_many_types_are_asked_for(both):
    _, served = both
    request = TagRequest(requests()[0].segment, tuple(INVENTORY))
    script = script_of(served, request)
    done = [OPEN, COPY, CLOSE]
    (branch,) = script.labels.root  # a space: this tokenizer knows single bytes
    asked = asyncio.run_coroutine_threadsafe(served._decode(request, script, done, 1), served._loop)
    (only, first, *_) = asked.result()
    assert (only.action, only.logprobs) == (LABEL, None)
    assert len(first.logprobs) == len(branch.node) > LABEL
    assert math.fsum(map(math.exp, first.logprobs.values())) == pytest.approx(1.0, abs=1e-3)
    assert all(map(math.isfinite, first.logprobs.values()))


@pytest.mark.parametrize("room", [1, 2, 5, 30])
def test_a_line_that_does_not_fit_is_cut_off(both, monkeypatch, room):
    """So few tokens are left behind the prompt: what was said till then counts, and some branches have no room."""
    _, served = both
    for request in requests():
        monkeypatch.setattr(vllm, "_LONGEST", len(script_of(served, request).prompt()) + room)
        (line,) = served.tag([request])
        parsed = parse(line)
        assert all(0 <= x.start < x.end <= len(request.segment.text) for x in parsed.candidates)
