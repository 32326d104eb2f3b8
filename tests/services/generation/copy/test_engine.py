"""The engine of labelled lines against plain decoding."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.generation.engine import TagRequest
from shared.text.grammar import ABSENT, CLOSE, LABEL, OPEN, tagged_text
from shared.text.pieces import split
from tests.support.copying import TEXTS, TYPES, greedy, segment


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


def test_one_type_needs_no_label_to_be_decided(engine, reference):
    for text in TEXTS:
        (line,) = engine.tag([TagRequest(segment(text), ("protein",))])
        script, actions, _ = greedy(reference, text, ("protein",))
        assert line.tagged == (tagged_text(split(text), actions, script.labels) if OPEN in actions else "")


def test_no_requests(engine):
    assert engine.tag([]) == []
