"""A contrastive loss for spans (supervised InfoNCE, Khosla et al. 2020, arXiv 2004.11362)."""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive_loss(embeddings: Tensor, types: Tensor, right: Tensor, temperature: float) -> Tensor:
    """The mean loss in nats of embeddings (N, size) of norm 1, with types (N,) and right (N,).

    Anchors are mentions. Positives are the other mentions of the type; negatives are wrong spans of the type and
    mentions of other types. A mention without positives does not count.
    """
    alike = types[:, None] == types[None, :]
    others = ~torch.eye(len(types), dtype=torch.bool, device=types.device)
    near = alike & right[:, None] & right[None, :] & others
    seen = (alike | right[None, :]) & others
    similarity = (embeddings @ embeddings.T / temperature).masked_fill(~seen, float("-inf"))
    anchors = near.any(dim=1)
    if not anchors.any():
        return embeddings.sum() * 0.0
    logprobs = torch.log_softmax(similarity[anchors], dim=1)
    near = near[anchors]
    return -(logprobs.masked_fill(~near, 0.0).sum(dim=1) / near.sum(dim=1)).mean()
