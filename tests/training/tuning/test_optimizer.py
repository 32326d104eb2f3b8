import torch

from training.tuning.optimizer import MasterAdamW


def test_updates_below_the_precision_of_bfloat16_add_up():
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([parameter], 1e-3, 0.0)
    for _ in range(20):  # each is less than half of what bfloat16 can tell from 1
        parameter.grad = torch.ones_like(parameter)
        optimizer.set_rate(1e-3)
        optimizer.step(1.0)
    assert (parameter < 0.99).all()


def test_a_restored_optimizer_goes_on_as_the_first_would_have():
    def parameter():
        return torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.bfloat16).view(2, 3))

    def step(optimizer, seed):
        torch.manual_seed(seed)
        for p in optimizer.parameters:
            p.grad = torch.randn_like(p)
        optimizer.set_rate(1e-2)
        optimizer.step(1.0)

    first, second = MasterAdamW([parameter()], 1e-2, 0.1), MasterAdamW([parameter()], 1e-2, 0.1)
    step(first, 0)
    second.load_state_dict(first.state_dict())
    for optimizer in (first, second):
        step(optimizer, 1)
    assert torch.equal(first.masters[0], second.masters[0])
    assert torch.equal(first.parameters[0], second.parameters[0])
