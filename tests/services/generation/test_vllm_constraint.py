"""The constraint on rows of logits, as vLLM calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from services.generation.walk import KEY
from shared.text.grammar import COPY, OPEN, Action
from tests.support.tiny import make_tiny_model

pytest.importorskip("vllm", reason="vllm is not installed: `make vllm` installs it")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # vLLM and what it brings warn of many things

TEXT = "IL-2 gene"


@pytest.fixture
def constraint(tmp_path: Any) -> Any:
    from services.generation.vllm_constraint import CopyConstraint

    config = SimpleNamespace(model_config=SimpleNamespace(tokenizer=str(make_tiny_model(tmp_path))))
    return CopyConstraint(config, torch.device("cpu"), False)


def update(*, added: Any = (), removed: Any = (), moved: Any = ()) -> Any:
    return SimpleNamespace(added=added, removed=removed, moved=moved)


def asked(said: list[int], *done: Action, closing: int = 0) -> Any:
    asked = {"text": TEXT, "types": ["protein", "dna"], "lang": "en", "done": list(done), "closing": closing}
    arguments = {KEY: asked}
    return SimpleNamespace(extra_args=arguments), [], said


def free(constraint: Any, rows: int) -> list[set[int]]:
    """The tokens that each row may say."""
    logits = torch.zeros(rows, 400)
    left = constraint.apply(logits)
    assert left is logits
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in left]


def test_a_row_may_say_what_its_line_allows_and_others_are_left_alone(constraint: Any) -> None:
    said: list[int] = []
    constraint.update_state(update(added=[(1, *asked(said)), (2, SimpleNamespace(extra_args=None), [], [])]))
    tokens = constraint._tokens
    first = tokens.ids("IL")
    everything = set(range(400))
    assert free(constraint, 3) == [everything, {first[0], tokens.open[0], tokens.absent[0]}, everything]
    said += tokens.absent
    assert free(constraint, 3)[1] == set(tokens.end)


def test_rows_go_with_their_requests(constraint: Any) -> None:
    from vllm.v1.sample.logits_processor import MoveDirectionality

    constraint.update_state(update(added=[(0, *asked([])), (1, *asked([], COPY, OPEN, closing=1))]))
    whole, closing = free(constraint, 2)
    assert whole != closing
    constraint.update_state(update(moved=[(0, 1, MoveDirectionality.SWAP)]))
    assert free(constraint, 2) == [closing, whole]
    constraint.update_state(update(removed=[1]))
    constraint.update_state(update(moved=[(0, 1, MoveDirectionality.UNIDIRECTIONAL)]))
    assert free(constraint, 2) == [set(range(400)), closing]
    constraint.update_state(None)
    assert free(constraint, 2)[1] == closing


def test_the_greedy_choice_is_not_left_as_it_was(constraint: Any) -> None:
    assert not constraint.is_argmax_invariant()
