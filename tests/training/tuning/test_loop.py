"""What the loop does that does not depend on what is trained; runs of generators and selectors have theirs."""

import torch

from training.tuning.loop import MasterAdamW


def test_updates_below_the_precision_of_bfloat16_add_up():
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([parameter], 1e-3, 0.0)
    for _ in range(20):  # each is less than half of what bfloat16 can tell from 1
        parameter.grad = torch.ones_like(parameter)
        optimizer.step(1e-3, 1.0)
    assert (parameter < 0.99).all()
