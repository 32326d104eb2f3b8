"""AdamW for bfloat16 weights, sharded (FSDP) or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class MasterAdamW:
    """AdamW on float32 master copies of the parameters: a bfloat16 weight loses updates below 1/256 of its size."""

    def __init__(self, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self.parameters = parameters
        self.masters = [p.detach().float().clone() for p in parameters]
        # On a GPU the rate is a tensor, and the state stays there, so that a step can be recorded as a CUDA graph.
        cuda = parameters[0].is_cuda
        self._rate = torch.tensor(learning_rate, device=parameters[0].device) if cuda else learning_rate
        self.optimizer = torch.optim.AdamW(
            self.masters,
            lr=self._rate,
            betas=(0.9, 0.98),
            weight_decay=weight_decay,
            foreach=True,
            capturable=cuda,
        )

    def set_rate(self, learning_rate: float) -> None:
        """The learning rate from the next step on."""
        if isinstance(self._rate, Tensor):
            self._rate.fill_(learning_rate)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def drop_gradients(self) -> None:
        """Drops the parameters' gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, clip: float) -> None:
        """One update from the parameters' gradients, whose norm is clipped to ``clip``; drops the gradients."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            master.grad = parameter.grad.float() if parameter.grad is not None else None
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, clip, foreach=True if self.masters[0].is_cuda else None)
        self.optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                parameter.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """The whole state as unsharded CPU tensors. All workers must call it."""
        state = [self.optimizer.state[m] for m in self.masters]
        return {
            "masters": [whole(m) for m in self.masters],
            "state": [{name: whole(value) for name, value in one.items()} for one in state],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, sharded as the parameters are."""
        with torch.no_grad():
            for master, parameter, saved, one in zip(
                self.masters, self.parameters, state["masters"], state["state"], strict=True
            ):
                master.copy_(_like(saved, master))
                parameter.copy_(master)
                if one:
                    self.optimizer.state[master] = {
                        name: _like(value, master)
                        if value.shape == saved.shape and value.dim()
                        else value.clone().to(master.device if isinstance(self._rate, Tensor) else value.device)
                        for name, value in one.items()
                    }


def whole(tensor: Tensor) -> Tensor:
    """A tensor, unsharded, on the CPU. All workers must call it."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def _like(whole: Tensor, other: Tensor) -> Tensor:
    """``whole`` on the device of ``other``, sharded in the same way."""
    whole = whole.to(other.device)
    if isinstance(other, DTensor):
        return distribute_tensor(whole, other.device_mesh, other.placements)
    return whole.clone()
