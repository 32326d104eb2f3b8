"""Steps as CUDA graphs: the kernels of a step are recorded once for each shape of batch, and replayed by one launch.

A small model's step on a large GPU is thousands of kernels of a few microseconds, so that launching them one by one
takes longer than running them. See "CUDA graphs" in PyTorch's notes for what may be recorded: no shape and no branch
may depend on the content of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from training.tuning.optimizer import MasterAdamW

_WARM_UP = 2  # passes before recording, in which libraries allocate their workspaces


@dataclass(frozen=True, slots=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    batch: Any  # its tensors are what the graph reads
    loss: Tensor


class GraphedSteps:
    """Runs whole steps, the optimiser's included, of batches that are dataclasses of CUDA tensors.

    The first step is run as it is, since it makes the optimiser's state.
    """

    def __init__(self, objective: nn.Module, optimizer: MasterAdamW, updated: Callable[[], None], clip: float) -> None:
        self._objective, self._optimizer, self._updated, self._clip = objective, optimizer, updated, clip
        self._recorded: dict[tuple[Any, ...], _Recorded] = {}
        self._memory = torch.cuda.graph_pool_handle()
        self._begun = False

    def step(self, batch: Any, rate: float) -> float:
        """One step at a learning rate; the batch's loss, in nats."""
        self._optimizer.set_rate(rate)
        if not self._begun:
            self._begun = True
            return self._run(batch).item()
        shape = tuple(v.shape if isinstance(v, Tensor) else None for v in _values(batch))
        found = self._recorded.get(shape)
        if found is None:
            found = self._recorded[shape] = self._record(batch)
        for there, here in zip(_values(found.batch), _values(batch), strict=True):
            if isinstance(there, Tensor):
                there.copy_(here)
        found.graph.replay()
        return found.loss.item()

    def _run(self, batch: Any) -> Tensor:
        loss: Tensor = self._objective(batch)
        loss.backward()
        self._optimizer.step(self._clip)
        self._updated()
        return loss.detach()

    def _record(self, batch: Any) -> _Recorded:
        tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
        own = replace(batch, **{name: v.clone() for name, v in tensors.items() if isinstance(v, Tensor)})
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._objective(own).backward()
                self._optimizer.drop_gradients()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            loss = self._run(own)
        return _Recorded(graph, own, loss)


def _values(batch: Any) -> list[Any]:
    return [getattr(batch, f.name) for f in fields(batch)]
