from __future__ import annotations

import time

import pytest

from services.generation.copy.engine import CopyEngine
from services.generation.engine import TagRequest
from tests.support.copying import TEXTS, TYPES, made, segment
from tests.support.failing import FailingBody


@pytest.mark.parametrize(("threads", "tokens"), [(1, 1), (1, 200), (3, 200), (3, 4000)])
def test_lines_do_not_depend_on_what_is_running_beside_them(folder, engine, threads, tokens):
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS * 3)]
    alone = [engine.tag([request])[0] for request in requests]
    together = made(folder, threads=threads, pass_tokens=tokens, cache_tokens=tokens).tag(requests)
    for a, b in zip(alone, together, strict=True):
        assert (a.tagged, a.types, a.segment) == (b.tagged, b.types, b.segment)
        assert a.brackets == pytest.approx(b.brackets, abs=1e-4)
        assert [(x.start, x.end, x.type) for x in a.alternatives] == [(x.start, x.end, x.type) for x in b.alternatives]


def test_a_segment_that_fails_fails_alone(engine):
    good = TagRequest(segment(TEXTS[0]), TYPES)
    (expected,) = engine.tag([good])
    futures = [engine.submit(request) for request in (good, TagRequest(segment(TEXTS[1]), ("no such type",)), good)]
    assert futures[0].result().tagged == futures[2].result().tagged == expected.tagged
    with pytest.raises(KeyError):
        futures[1].result()


@pytest.fixture
def failing(engine):
    config = engine._config.model_copy(update={"threads": 1})
    body = FailingBody(engine._forward._body)
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
