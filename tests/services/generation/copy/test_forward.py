from __future__ import annotations

import math

import pytest
import torch

from services.generation.copy.forward import Forward, Part, side_by_side
from shared.model.attention import use_packed_attention
from shared.model.body import Packed
from shared.model.masks import causal


@torch.inference_mode()
def test_parts_of_a_pass_do_not_see_one_another(reference):
    """Each part gets what its tokens alone give, also behind tokens that are in the cache."""
    model, tokens = reference
    forward = Forward(Packed(use_packed_attention(model)))
    cache = forward.cache()
    one, other = list(tokens.ids("CD28 gene")), list(tokens.ids("T cells"))
    asked = [(3, (5, 6, 7)), (len(other) - 1, (8, 9))]
    parts = []
    for ids, decision in zip((one, other), asked, strict=True):
        slot = cache.take(2 * len(ids))
        parts.append(Part(ids, range(len(ids)), causal(len(ids)), slot, 0, [decision]))
    answers = forward.run(parts, cache)
    more = [
        Part(part.ids, range(n := len(part.ids), 2 * n), causal(n, n), part.slot, n, [decision])
        for part, decision in zip(parts, asked, strict=True)
    ]
    answers += forward.run(more, cache)
    for answer, ids, (at, first) in zip(answers, (one, other, one + one, other + other), (*asked, *asked), strict=True):
        place = at if len(ids) in (len(one), len(other)) else at + len(ids) // 2
        whole = Part(ids, range(len(ids)), causal(len(ids)), cache.take(len(ids)), 0, [(place, first)])
        ((expected,),) = forward.run([whole], cache)
        assert answer[0] == pytest.approx(expected, abs=1e-4)
        assert sum(map(math.exp, answer[0])) == pytest.approx(1.0)


def test_tasks_side_by_side_share_their_passes():
    def task(rounds):
        said = []
        for _ in range(rounds):
            (answer,) = yield [f"part of {rounds}"]
            said.append(answer)
        return said

    both = side_by_side([task(1), task(0), task(2)])
    assert next(both) == ["part of 1", "part of 2"]
    assert both.send(["a", "b"]) == ["part of 2"]
    with pytest.raises(StopIteration) as end:
        both.send(["c"])
    assert end.value.value == [["a"], [], ["b", "c"]]
