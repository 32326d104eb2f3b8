from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from training.tuning.graphs import GraphedSteps
from training.tuning.optimizer import MasterAdamW

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU; there is none")


@dataclass(frozen=True)
class _Batch:
    x: Tensor
    y: Tensor
    tokens: int = 1


class _Objective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4, dtype=torch.bfloat16, device="cuda")

    def forward(self, batch: _Batch) -> Tensor:
        return (self.layer(batch.x).float() - batch.y).square().mean()


def test_recorded_steps_are_those_that_would_have_been_run():
    """Over batches of two shapes and a learning rate that changes: the same losses and the same weights."""
    draw = torch.Generator("cuda").manual_seed(1)
    batches = [
        _Batch(
            torch.randn(rows, 8, dtype=torch.bfloat16, device="cuda", generator=draw),
            torch.randn(rows, 4, device="cuda", generator=draw),
        )
        for rows in (3, 5, 3, 3, 5, 5)
    ]
    plain, graphed = _Objective(), _Objective()
    one, other = (MasterAdamW(list(o.parameters()), 1e-2, 0.0) for o in (plain, graphed))
    refreshed = torch.zeros(1, device="cuda")
    steps = GraphedSteps(graphed, other, lambda: refreshed.add_(1), 1.0)
    for i, batch in enumerate(batches):
        one.set_rate(1e-2 / (i + 1))
        loss = plain(batch)
        loss.backward()
        one.step(1.0)
        assert steps.step(batch, 1e-2 / (i + 1)) == pytest.approx(loss.item(), rel=1e-3)
    assert refreshed.item() == len(batches)
    for master, expected in zip(other.masters, one.masters, strict=True):
        torch.testing.assert_close(master, expected, atol=1e-4, rtol=1e-3)
